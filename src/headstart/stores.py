"""What everything that talks to MLflow shares: its settings, its addresses, and its errors in a line."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from textwrap import shorten


def prepare() -> None:
    """MLflow takes these settings from the environment alone; whoever has set one keeps it."""
    # Nothing phones home.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Recent versions refuse folders unless told that they are wanted; here the user has named one.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    # An address where nobody answers is to be reported in seconds, not minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    # Standard output is ours, and so is the terminal.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # A new database tells of each of its several dozen migrations, a server of every version that it makes.
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.utils.uri", "mlflow.store.model_registry.abstract_store"):
        logging.getLogger(name).setLevel(logging.WARNING)


def address(uri: str) -> str:
    """Plain paths as URIs: `runs.db` and other database files by their ending, everything else a folder."""
    if uri == "databricks" or re.match(r"[a-z][a-z0-9+.-]+:", uri):
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        return uri
    path = Path(uri).absolute()
    if path.suffix in (".db", ".sqlite", ".sqlite3"):
        path.parent.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{path}"
    return path.as_uri()


def first_line(error: Exception) -> str:
    """What a library's error says first, without passwords, in at most 200 characters."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return shorten(shown(line), 200, placeholder=" ...")


def shown(text: str) -> str:
    """Text whose addresses have lost their passwords, which must reach neither a screen nor a bundle's folder."""
    return re.sub(r"://([^/@\s:]*):[^/@\s]*@", r"://\1:***@", text)
