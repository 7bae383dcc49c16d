"""What the speed scripts share: seconds of a call, memory at its peak, records, a ratio with its interval."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np


def halves() -> bool:
    """Whether the processor has units for bf16."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def measured(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What `work` gives, with its wall and CPU seconds (all threads of this process)."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    spent = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return found, {name: round(value, 3) for name, value in spent.items()}


def peak() -> int:
    """The highest resident memory of this process so far, in MB (VmHWM)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) // 1024
    raise SystemExit("this system does not tell VmHWM")


def record(path: Path, line: Mapping[str, Any]) -> None:
    """Append a line of JSON."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def recorded(path: Path) -> list[dict[str, Any]]:
    """The lines of a record."""
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


def summary(values: Sequence[float]) -> str:
    """Median and range."""
    digits = 0 if median(values) >= 100 else 1
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def ratio(lines: Sequence[Mapping[str, Any]], above: str, below: str, what: str, draws: int = 10_000) -> str:
    """The geometric mean over pairs of above / below, with the 95 % interval of a bootstrap over the pairs."""
    logs = np.log([line[above][what] / line[below][what] for line in lines])
    drawn = np.random.default_rng(0).choice(logs, (draws, len(logs))).mean(1)
    low, high = np.exp(np.quantile(drawn, [0.025, 0.975]))
    return f"{np.exp(logs.mean()):.2f} ({low:.2f} to {high:.2f})"
