"""How bytes of a connection become requests: by a parser in C, with a bound on what is not a body.

uvicorn's own protocol on httptools keeps a request's headers, however many a client sends; its protocol on h11 bounds
them and takes three times as long.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST = 1 << 16
"""Bytes of a request line and headers, or of what follows the last chunk of a body."""


class Wire(HttpToolsProtocol):
    """A connection. One that sends more than `MOST` bytes without getting to a body or an end is closed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._unread = 0

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        self._unread += len(data)
        super().data_received(data)
        if self._unread > MOST and not self.transport.is_closing():
            self.send_400_response("Too many headers.")

    def on_headers_complete(self) -> None:
        """What follows is a body, which has a limit of its own, or another request."""
        self._unread = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request."""
        self._unread = 0
        super().on_message_complete()
