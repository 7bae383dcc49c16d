"""Headstart: transfer learning from labelled data and a pretrained model to a proven model and its evidence.

    import headstart as hs
    model = hs.fit("train.csv", test="test.csv")
    model.predict(["my card never arrived"])
    model.report
    model.save("runs/tickets")
    hs.load("runs/tickets")

Importing the package imports none of the heavy libraries: each name below is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "fit": "headstart.adapt",
    "plan": "headstart.verbs",
    "load": "headstart.bundle",
    "predict": "headstart.verbs",
    "evaluate": "headstart.verbs",
    "explain": "headstart.explanation.attribution",
    "compare": "headstart.comparison",
    "export": "headstart.compression.export",
    "compress": "headstart.compression.run",
    "lighten": "headstart.bundle.light",
    "register": "headstart.registry.verbs",
    "models": "headstart.registry.verbs",
    "promote": "headstart.registry.verbs",
    "rollback": "headstart.registry.verbs",
    "remove": "headstart.registry.removal",
    "Bundle": "headstart.bundle",
    "Report": "headstart.evaluation",
    "Spec": "headstart.spec",
    "Method": "headstart.protocols",
    "HeadstartError": "headstart.errors",
    "BadInput": "headstart.errors",
}
_MODULES = ("methods", "errors", "examples", "sklearn")

__all__ = [*_HOMES, *_MODULES]

if TYPE_CHECKING:
    from headstart import errors, examples, methods, sklearn
    from headstart.adapt import fit
    from headstart.bundle import Bundle, load
    from headstart.bundle.light import lighten
    from headstart.comparison import compare
    from headstart.compression.export import export
    from headstart.compression.run import compress
    from headstart.errors import BadInput, HeadstartError
    from headstart.evaluation import Report
    from headstart.explanation.attribution import explain
    from headstart.protocols import Method
    from headstart.registry.removal import remove
    from headstart.registry.verbs import models, promote, register, rollback
    from headstart.spec import Spec
    from headstart.verbs import evaluate, plan, predict


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _MODULES:
        return import_module(f"headstart.{name}")
    raise AttributeError(f"module 'headstart' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
