"""The same pipeline behind LitServe, with its batching. Arguments: folder, max_batch_size, batch_timeout.

Started by `peers.py`.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

import litserve as ls


class Classifier(ls.LitAPI):
    """`predict` gets the texts of several requests, each request one text."""

    def setup(self, device: str) -> None:
        from transformers import pipeline

        self.classify = pipeline("text-classification", model=sys.argv[1], device=device)

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # its type would become the route's
        (text,) = request
        return str(text)

    def predict(self, texts: list[str]) -> Any:
        return self.classify(list(texts), batch_size=len(texts))

    def encode_response(self, output: Any) -> Any:
        return [output]


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = ls.LitServer(
        Classifier(max_batch_size=int(sys.argv[2]), batch_timeout=float(sys.argv[3])), accelerator="cpu"
    )
    print(f"litserve at http://127.0.0.1:{port}", flush=True)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)
