"""Transfer methods, one file each. `headstart.methods.L2SP(0.01)` is the class in `l2sp.py`."""

from typing import Any


def __getattr__(name: str) -> Any:
    from headstart.catalog import entries

    for entry in entries("methods").values():
        if entry.target.endswith(f":{name}"):
            return entry.load()
    raise AttributeError(f"module 'headstart.methods' has no attribute '{name}'")


def __dir__() -> list[str]:
    from headstart.catalog import entries

    return sorted(entry.target.partition(":")[2] for entry in entries("methods").values())
