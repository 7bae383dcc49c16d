"""A model behind FastAPI as most people write it: a pipeline and a plain `def` endpoint. Started by `peers.py`."""

from __future__ import annotations

import socket
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from transformers import pipeline

app = FastAPI()
classify = pipeline("text-classification", model=sys.argv[1], device="cpu")


@app.post("/predict")
def predict(texts: list[str]) -> Any:
    """FastAPI runs this in one of its threads."""
    return classify(texts)


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    print(f"plain at http://127.0.0.1:{port}", flush=True)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
