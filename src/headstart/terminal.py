"""What people see on standard error while a run goes on: the plan, a progress bar, one line a validation."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Terminal:
    """A listener that writes to standard error; the bar only shows on a terminal."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.bar: Progress | None = None
        self.job: Any = None
        self.rows, self.since, self.metric = 0, time.monotonic(), ""

    def __call__(self, event: str, figures: Mapping[str, Any]) -> None:
        """Show one event of a run."""
        handler = getattr(self, f"_{event}", None)
        if handler is not None:
            handler(figures)

    def say(self, text: str) -> None:
        """One line for people."""
        self.console.print(text, markup=False)

    def _plan(self, figures: Mapping[str, Any]) -> None:
        self.say(str(figures["plan"]))

    def _note(self, figures: Mapping[str, Any]) -> None:
        self.say(f"note: {figures['text']}")

    def _stage(self, figures: Mapping[str, Any]) -> None:
        self.close()
        self.metric = ""
        self.say(f"stage {figures['number']} of {figures['of']}: {figures['name']}")

    def _step(self, figures: Mapping[str, Any]) -> None:
        if not sys.stderr.isatty():
            return
        if self.bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
            self.bar = Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True)
            self.bar.start()
            self.job = self.bar.add_task("", total=figures["steps"])
            self.rows, self.since = 0, time.monotonic()
        self.rows += figures["rows"]
        speed = self.rows / max(1e-9, time.monotonic() - self.since)
        text = f"loss {figures['loss']:.4f}{self.metric}  {speed:.0f} rows/s"
        self.bar.update(self.job, completed=figures["step"], description=text)

    def _epoch(self, figures: Mapping[str, Any]) -> None:
        scores = {k: v for k, v in figures.items() if k not in ("epoch", "step", "seconds")}
        self.metric = "".join(f"  {name} {value:.4f}" for name, value in scores.items())
        self.say(f"  epoch {figures['epoch']}{self.metric}  ({figures['seconds']:.0f} s)")

    def _cell(self, figures: Mapping[str, Any]) -> None:
        cell = figures["cell"]
        self.say(
            f"[{figures['done']}/{figures['of']}] {cell.arm} at {cell.budget} ({cell.rows} rows, seed {cell.seed}"
            f"{f', fold {cell.fold}' if cell.fold else ''}): "
            f"{figures['metric']} {cell.value:.4f} in {cell.seconds:.0f} s"
        )

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
