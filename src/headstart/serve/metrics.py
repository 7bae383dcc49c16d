"""What a server counts, in the format of Prometheus.

Names of models are those that the server knows, never a client's.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counters of one server; two servers in one process do not share them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        names = ("route", "model", "status")
        self.requests = Counter(
            "headstart_requests", "Requests answered, refused ones too", names, registry=self.registry
        )
        self.seconds = Histogram(
            "headstart_request_seconds", "Seconds from a request to its answer", ("route", "model"),
            registry=self.registry, buckets=_SECONDS,
        )  # fmt: skip
        self.rows = Counter("headstart_rows", "Rows answered", ("model",), registry=self.registry)
        self.batch = Histogram(
            "headstart_batch_rows", "Rows that the network saw at once", ("model",), registry=self.registry,
            buckets=_ROWS,
        )  # fmt: skip
        self.waiting = Gauge(
            "headstart_waiting_rows", "Rows that wait or are answered", ("model",), registry=self.registry
        )
        self.loaded = Gauge(
            "headstart_model_loaded", "1 for a model that is loaded", ("model",), registry=self.registry
        )

        self.weights = Gauge(
            "headstart_weights_bytes", "Weights in memory, those that models share once", registry=self.registry
        )

    def request(self, route: str, model: str, status: int, seconds: float, rows: int) -> None:
        """Count one answer."""
        self.requests.labels(route, model, str(status)).inc()
        self.seconds.labels(route, model).observe(seconds)
        if rows and status < 400:
            self.rows.labels(model).inc(rows)

    def text(self, waiting: dict[str, int], known: list[str], weights: int) -> bytes:
        """Everything counted. waiting: rows by loaded model; known: all names; weights: bytes in memory."""
        self.weights.set(weights)
        for name in known:
            self.loaded.labels(name).set(name in waiting)
            self.waiting.labels(name).set(waiting.get(name, 0))
        return generate_latest(self.registry)
