"""What a user writes for a way to a smaller model: `prune:0.4 distil:layers=3 int8`, steps that follow each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headstart.errors import SpecError, did_you_mean
from headstart.spec import MethodSpec
from headstart.spec.notation import parse_gate, written

LEARNED = ("prune", "distil")
"""Steps that give a model which can learn on."""

FORMS: Mapping[str, tuple[str, str | None]] = {
    "onnx": ("onnx", None),
    "int8": ("onnx", "int8"),
    "openvino": ("openvino", None),
    "openvino-int8": ("openvino", "int8"),
}
"""Steps that end in an export -> engine and number of bits. Each is made of the last model that can learn."""

MOST = 0.8
"""The largest share that `prune` takes: every layer keeps something."""


@dataclass(frozen=True)
class Step:
    """One step: its name, its options, and a gate of its own where it has one (1.0 for none)."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    gate: float | None = None

    @property
    def learned(self) -> bool:
        """Whether the step gives a model that can learn on."""
        return self.name in LEARNED

    @property
    def work(self) -> str:
        """The step without its gate: what is done, whatever is said of the result."""
        share = [written(self.options["share"])] if "share" in self.options else []
        listed = share + [f"{k}={written(v)}" for k, v in self.options.items() if k != "share"]
        return f"{self.name}:{','.join(listed)}" if listed else self.name

    def __str__(self) -> str:
        if self.gate is None:
            return self.work
        return f"{self.work}{',' if ':' in self.work else ':'}gate={'off' if self.gate == 1 else f'{self.gate:g}'}"


Line = tuple[Step, ...]
"""The steps of one alternative, in order."""


def parse(text: str) -> Line:
    """The steps of a plan. Raises SpecError for a step that is unknown or cannot stand where it does."""
    steps = tuple(_step(word) for word in text.split())
    if not steps:
        raise SpecError("expected a plan of one or more steps, such as 'prune:0.4 distil:layers=3 int8', received none")
    for place, step in enumerate(steps):
        if step.learned and any(not earlier.learned for earlier in steps[:place]):
            raise SpecError(
                f"in the plan '{text}', {step.name} comes after an export, which cannot learn: put it before"
            )
        if step in steps[:place] or (step.name == "prune" and any(s.name == "prune" for s in steps[:place])):
            raise SpecError(f"the plan '{text}' has {step.name} twice: give it once, with all that it shall do")
    return steps


def _step(word: str) -> Step:
    name, _, rest = word.partition(":")
    known = (*LEARNED, *FORMS)
    if name not in known:
        raise SpecError(f"there is no step '{name}' to compress by: {did_you_mean(name, known)}")
    # A bare number is the share that prune takes.
    bare, _, more = rest.partition(",")
    share = None
    if name == "prune" and rest and "=" not in bare:
        share, rest = _share(bare, word), more
    options = dict(MethodSpec.parse(f"{name}:{rest}").options)
    own = options.pop("gate", None)
    if not name.startswith(LEARNED) and options:
        raise SpecError(f"the step '{name}' takes no options but gate, received '{word}'")
    if name == "prune":
        share = _share(options.pop("share", share), word) if "share" in options or share is not None else None
        if share is None and not {"heads", "neurons"} & set(options):
            raise SpecError(f"expected a share to prune, such as prune:0.4, received '{word}'")
        options = {**({} if share is None else {"share": share}), **options}
    for key, least in (("heal", 0), ("epochs", 1), ("layers", 1)):
        value = options.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            if key == "layers" and isinstance(value, list):
                continue
            raise SpecError(f"expected {name}:{key} as a whole number of at least {least}, received '{value}'")
    for key in ("rate", "weight"):
        value = options.get(key, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise SpecError(f"expected {name}:{key} as a number above 0, received '{value}'")
    gate = None if own is None else 1.0 if own == "off" else parse_gate(own)
    return Step(name, options, gate)


def _share(value: Any, word: str) -> float:
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = -1.0
    if not 0 < share <= MOST:
        raise SpecError(f"expected a share to prune above 0 and up to {MOST:g}, such as prune:0.4, received '{word}'")
    return share


def slug(steps: Sequence[Step]) -> str:
    """A folder's name for the steps up to some place: 'prune-0.4+distil-layers-3'."""

    def word(step: Step) -> str:
        # A gate chooses what an export leaves alone; of other steps it only says whether the line goes on.
        text = step.work if step.learned else str(step)
        return "".join(c if c.isalnum() or c in ".-" else "-" for c in text).strip("-")

    return "+".join(map(word, steps))
