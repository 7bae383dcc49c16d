"""The frozen bottom computed once: the run is the one that computes it in each epoch, and doubt switches it off."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from headstart import backbones, inference
from headstart.encoded import Encoded
from headstart.frozen.kept import KeptRows
from headstart.frozen.prefix import HARMLESS, SEEN, Prefix
from headstart.hooks import Hooks
from headstart.loop import Loop, Trained
from headstart.methods.augment import Augment
from headstart.methods.ema import EMA
from headstart.methods.freeze import Freeze
from headstart.methods.lora import LoRA
from headstart.methods.mixup import Mixup
from headstart.modalities.image import ImageModality
from headstart.modalities.text import TextModality
from headstart.model import Model
from headstart.protocols import Context, Method
from headstart.running import set_modes
from headstart.spec import BackboneSpec, TrainingSpec
from headstart.steps.ways import Ways
from headstart.tasks.classification import Classification
from headstart.values import Batch
from hub_folders import IMAGE, TEXT, WORDS, hub
from tiny import make_loop, make_rows, make_task

__all__ = ["hub"]
"""A fixture that pytest finds by its name."""

SHARES_BLOCKS = {"albert"}
TIMM = {"timm_efficientnet": "test_efficientnet", "timm_vit": "test_vit", "timm_resnet": "test_resnet"}


def losses_of(loop: Loop, *, resume: bool = False) -> tuple[Trained, list[float]]:
    found: list[float] = []
    old = loop.listen

    def listen(event: str, figures: Mapping[str, Any]) -> None:
        old(event, figures)
        if event == "step":
            found.append(figures["loss"])

    loop.listen = listen
    torch.manual_seed(0)
    return loop.train(resume=resume), found


def difference(a: nn.Module, b: nn.Module) -> float:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    return max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in ours)


def both(make: Callable[[str], Loop]) -> tuple[Trained, Trained]:
    """The run with the bottom kept, and the one that computes it in each epoch, which it must equal."""
    (kept, a), (plain, b) = losses_of(make("auto")), losses_of(make("off"))
    assert len(a) == len(b) and np.allclose(a, b, rtol=0, atol=1e-5)
    assert difference(kept.model, plain.model) < 1e-5
    for one, other in zip(kept.history, plain.history, strict=True):
        assert one.keys() == other.keys()
        assert all(abs(one[key] - other[key]) < 1e-5 for key in one if key != "seconds")
    assert not plain.bottom
    return kept, plain


def once(result: Trained) -> list[str]:
    return [note for note in result.bottom if "computed once" in note]


def tiny(method: Method, **more: Any) -> Callable[[str], Loop]:
    def make(cache: str) -> Loop:
        rows, held = make_rows(60), make_rows(24, seed=1)
        options = {"rows": rows, "validation": held, "epochs": 4, "patience": None, **more}
        return make_loop({"freeze": method}, cache=cache, **options)

    return make


@pytest.mark.parametrize(
    "method", [Freeze(), Freeze(top=1), Freeze(top=2), Freeze(bottom=1)], ids=["head", "top=1", "top=2", "bottom=1"]
)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_is_the_one_that_computes_the_bottom_each_epoch(method: Freeze, accumulate: int) -> None:
    kept, _ = both(tiny(method, accumulate=accumulate))
    assert len(once(kept)) == 1


def texts(count: int, seed: int) -> tuple[list[str], list[str]]:
    draws = np.random.default_rng(seed)
    rows = [" ".join(draws.choice(WORDS, draws.integers(1, 12))) for _ in range(count)]
    return rows, [str(len(row) % 3) for row in rows]


def pictures(count: int, seed: int) -> tuple[list[np.ndarray], list[str]]:
    draws = np.random.default_rng(seed)
    return [draws.integers(0, 255, (40, 36, 3), dtype=np.uint8) for _ in range(count)], [
        str(i % 3) for i in range(count)
    ]


def network_loop(
    ref: str, method: Method, cache: str, image: bool, more: Mapping[str, Method] | None = None, **training: Any
) -> Loop:
    """A loop over a real network of the libraries with random weights."""
    modality = ImageModality() if image else TextModality()
    size = {"image_size": 64} if image and ref.startswith("timm") else {}
    spec = BackboneSpec(ref=ref, pretrained=not ref.startswith("timm"), **size)
    backbone = backbones.load(spec, modality.name, seed=0)
    task = Classification.fit(["0", "1", "2"])
    torch.manual_seed(0)
    model = Model(backbone, nn.Linear(backbone.width, 3))
    parts = []
    for count, seed in ((22, 0), (9, 1)):
        values, labels = (pictures if image else texts)(count, seed)
        parts.append(Encoded.of(modality, backbone, values, task, labels))
    settings = TrainingSpec(batch_size=4, patience=None, cache=cache, optimizer="sgd", head_scale=1.0, **training)
    hooks = Hooks({"freeze": method, **(more or {})}, task, modality, seed=0)
    return Loop(model, hooks, parts[0], parts[1], settings, 3, 1e-2, torch.device("cpu"))


@pytest.mark.parametrize("family", [*TEXT, *IMAGE, *TIMM])
@pytest.mark.parametrize("method", [Freeze(top=1), Freeze()], ids=["top", "head"])
def test_networks_of_the_libraries(family: str, method: Freeze, hub: Callable[[str], Path]) -> None:
    if family in TIMM:
        pytest.importorskip("timm")
    ref = f"timm:{TIMM[family]}" if family in TIMM else f"file:{hub(family)}"
    kept, _ = both(lambda cache: network_loop(ref, method, cache, family not in TEXT))
    if method.top is None or family not in SHARES_BLOCKS:
        assert len(once(kept)) == 1, kept.bottom


def test_what_a_method_could_see_or_change_switches_it_off() -> None:
    def make(cache: str) -> Loop:
        return make_loop({"freeze": Freeze(top=1), "mixup": Mixup(alpha=0.4)}, cache=cache, validation=make_rows(24))

    kept, plain = make("auto").train(), make("off").train()
    assert kept.bottom == [
        "the frozen bottom (the stem and 2 of 3 blocks) is computed in each epoch: 'mixup' changes batches"
    ]
    assert difference(kept.model, plain.model) == 0


@dataclass
class Curious(Method):
    """Overrides one hook at a time, by the class that is made of it."""


@pytest.mark.parametrize("hook", ["transform", "stream", "penalty", "backward"])
def test_each_hook_that_sees_rows_is_a_reason(hook: str) -> None:
    method = type("Curious", (Curious,), {hook: getattr(Method, hook)})()
    setattr(type(method), hook, lambda *args, **more: None)
    prefix = Prefix(Hooks({"curious": method}, make_task(), TextModality(), seed=0), make_rows(8), None)
    assert (prefix.why_not() or "").startswith("'curious' ")


def test_hooks_that_nobody_thought_of_are_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Method, "peek", lambda self: None, raising=False)
    method = type("Curious", (Curious,), {"peek": lambda self: 1})()
    prefix = Prefix(Hooks({"curious": method}, make_task(), TextModality(), seed=0), make_rows(8), None)
    assert prefix.why_not() == "'curious' has its own peek"


def test_every_hook_of_today_has_been_thought_of() -> None:
    hooks = {name for name in dir(Method) if not name.startswith("_") and callable(getattr(Method, name))}
    assert hooks == set(SEEN) | HARMLESS


@pytest.mark.parametrize(("places", "boundary"), [((0,), None), ((1,), 1), ((2,), 2)])
def test_surgery_stays_above_the_boundary(places: tuple[int, ...], boundary: int | None) -> None:
    def make(cache: str) -> Loop:
        wrapped = {"operate": Operate(places), "freeze": Freeze(top=1)}
        return make_loop(wrapped, cache=cache, epochs=3, validation=make_rows(24), patience=None)

    loop, plain = make("auto"), make("off")
    kept = losses_of(loop)[0]
    assert loop.prefix.boundary(loop.model) == boundary
    assert difference(kept.model, losses_of(plain)[0].model) < 1e-5
    assert len(once(kept)) == (boundary is not None)


@dataclass
class Operate(Method):
    """Hangs something on some blocks that changes nothing."""

    places: tuple[int, ...] = ()

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        for place in self.places:
            model.backbone.blocks[place].register_forward_hook(lambda module, args, output: output + 0)
        return model


def test_a_hook_on_the_network_around_the_blocks_is_a_reason() -> None:
    loop = make_loop({"freeze": Freeze(top=1), "around": Around()}, epochs=2)
    assert loop.train().bottom == [] and loop.prefix.boundary(loop.model) is None


@dataclass
class Around(Method):
    """Hangs something on the whole network."""

    def adapt(self, model: nn.Module, ctx: Context) -> nn.Module:
        model.backbone.network.register_forward_hook(lambda module, args, output: output)
        return model


def test_averages_of_what_learns_are_validated_on_kept_rows() -> None:
    def make(cache: str) -> Loop:
        methods = {"freeze": Freeze(top=1), "ema": EMA(decay=0.5)}
        return make_loop(methods, cache=cache, epochs=3, validation=make_rows(24), patience=None)

    kept, _ = both(make)
    assert len(once(kept)) == 1


def test_lora_in_the_top_blocks_keeps_those_below() -> None:
    def make(cache: str) -> Loop:
        lora = LoRA(r=2, targets=("layers.2.linear",))
        return make_loop({"lora": lora}, cache=cache, epochs=3, validation=make_rows(24), patience=None)

    loop = make("auto")
    assert len(once(loop.train())) == 1
    assert loop.prefix.before == 2
    both(make)


def test_gradual_unfreezing_moves_the_boundary() -> None:
    kept, _ = both(tiny(Freeze(gradual=2), epochs=8))
    assert len(kept.bottom) == 2 and len(once(kept)) == 2, kept.bottom


@dataclass
class Meddle(Method):
    """Writes into the lowest block after some steps, in one of three ways."""

    way: str = "add"
    count: int = 0

    def after_step(self, model: nn.Module, ctx: Context) -> None:
        self.count += 1
        weight = model.backbone.blocks[0].linear.weight
        if self.count == 9:
            with torch.no_grad():
                if self.way == "add":
                    weight.add_(0.1)
                elif self.way == "data":
                    weight.data = weight.data + 0.1
                else:
                    weight.mul_(1.0)  # written to, and the same


@pytest.mark.parametrize("way", ["add", "data", "same"])
def test_a_stale_cache_is_never_used(way: str) -> None:
    def make(cache: str) -> Loop:
        methods = {"freeze": Freeze(top=1), "meddle": Meddle(way)}
        return make_loop(methods, cache=cache, epochs=4, validation=make_rows(24), patience=None)

    loop = make("auto")
    kept, a = losses_of(loop)
    plain, b = losses_of(make("off"))
    assert np.allclose(a, b, rtol=0, atol=1e-5) and difference(kept.model, plain.model) < 1e-5
    assert len(once(kept)) == 1, kept.bottom


def test_rows_of_another_set_and_another_model_are_not_served() -> None:
    loop = tiny(Freeze())("auto")
    loop.train()
    prefix, model = loop.prefix, loop.model
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    model.backbone.eval()
    assert isinstance(prefix.of(loop.train_rows, model), KeptRows)
    assert isinstance(prefix.of(loop.validation, model), KeptRows)
    strange = make_rows(60)
    assert prefix.of(strange, model) is strange
    other = copy.deepcopy(model)
    assert prefix.of(loop.train_rows, other) is loop.train_rows
    with torch.no_grad():
        model.backbone.blocks[1].linear.bias.add_(1)
    assert prefix.of(loop.train_rows, model) is loop.train_rows
    kept = next(versions[0] for plain, versions in prefix.rows if plain is loop.train_rows)
    assert kept.batch([0, 1]).kept is None, "a batch asked for after the weights moved is a plain one"


def test_there_is_no_cache_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = make_loop({"freeze": Freeze()}, cache="1KB", epochs=3).train()
    assert kept.bottom == [
        "the frozen network is computed in each epoch: keeping it takes 4.1 kB, and training.cache has room for 1.0 kB"
    ]

    def refuse(handle: int, start: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", refuse)
    (sentence,) = make_loop({"freeze": Freeze()}, epochs=3).train().bottom
    assert "the temporary folder has no room for it (No space left on device)" in sentence


def test_one_epoch_is_not_worth_it() -> None:
    assert make_loop({"freeze": Freeze()}, epochs=1).train().bottom == []


class Dice(nn.Module):
    """Dropout that no part of the backbone holds."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.1, self.training)


def test_random_numbers_below_the_boundary_switch_it_off() -> None:
    loop = make_loop({"freeze": Freeze(top=1)}, epochs=3)
    backbone = loop.model.backbone
    backbone.dice = Dice()
    plain = backbone.network.embedding.forward
    backbone.network.embedding.forward = lambda ids: backbone.dice(plain(ids))
    assert loop.train().bottom == [
        "the frozen bottom (the stem and 2 of 3 blocks) is computed in each epoch: it draws random numbers"
    ]


def test_states_that_go_around_the_boundary_switch_it_off() -> None:
    loop = make_loop({"freeze": Freeze(top=1)}, epochs=3)
    backbone, seen = loop.model.backbone, []
    backbone.blocks[0].register_forward_hook(lambda module, args, output: seen.append(output))
    backbone.network.norm.register_forward_hook(lambda module, args, output: output + seen.pop())
    assert loop.train().bottom == [
        "the frozen bottom (the stem and 2 of 3 blocks) is computed in each epoch: "
        "started at block 2 it does not give the same features"
    ]


@pytest.mark.parametrize("method", [Freeze(), Freeze(top=1), Freeze(gradual=1)], ids=["head", "top", "gradual"])
@pytest.mark.parametrize("steps", [1, 9, 24, 31, 39])
def test_a_resumed_run_ends_with_the_same_numbers(method: Freeze, steps: int, tmp_path: Path) -> None:
    def make(checkpoint: Path | None) -> Loop:
        rows, held = make_rows(60), make_rows(24, seed=1)
        return make_loop(
            {"freeze": method}, rows=rows, validation=held, epochs=5, patience=None, checkpoint=checkpoint,
            checkpoint_every=1e-9,
        )  # fmt: skip

    def stop(event: str, figures: Mapping[str, Any]) -> None:
        if event == "step" and figures["step"] == steps:
            raise KeyboardInterrupt

    whole = make(None).train().model
    broken = make(tmp_path / "state")
    broken.listen = stop
    with contextlib.suppress(KeyboardInterrupt):
        broken.train()
    assert difference(make(tmp_path / "state").train(resume=True).model, whole) == 0


def test_pictures_are_decoded_once(monkeypatch: pytest.MonkeyPatch, hub: Callable[[str], Path]) -> None:
    loop = network_loop(f"file:{hub('vit')}", Freeze(top=1), "auto", True)
    taken: list[int] = []
    plain = loop.train_rows.prepared.take
    monkeypatch.setattr(loop.train_rows.prepared, "take", lambda rows: taken.extend(rows) or plain(rows))
    loop.train()
    assert len(taken) == len(loop.train_rows) + 2 * 8, "each row once, beside the trial"


def test_features_at_hand_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(cache: str) -> Loop:
        return tiny(Freeze())(cache)

    loop = make("auto")
    loop.model.backbone.eval()
    loop.known = {
        "train": inference.pooled(loop.model.backbone, loop.train_rows),
        "validation": inference.pooled(loop.model.backbone, loop.validation),
    }
    monkeypatch.setattr("headstart.frozen.prefix.reach", lambda *args: pytest.fail("computed again"))
    kept, plain = loop.train(), make("off").train()
    assert difference(kept.model, plain.model) < 1e-5


def test_several_processes_do_without() -> None:
    loop = make_loop({"freeze": Freeze()}, epochs=3)
    prefix = Prefix(loop.hooks, loop.train_rows, None, alone=False)
    model = prefix.adapt(loop.model)
    for parameter in model.backbone.parameters():
        parameter.requires_grad_(False)
    model.backbone.eval()
    prefix.prepare(model, 0, 3)
    assert prefix.boundary(model) == 3 and not prefix.rows


@pytest.mark.parametrize("family", ["vit", "timm_efficientnet", "bert"])
@pytest.mark.parametrize("method", [Freeze(top=1), Freeze()], ids=["top", "head"])
def test_the_views_of_augmented_rows_are_kept(family: str, method: Freeze, hub: Callable[[str], Path]) -> None:
    """Three epochs see views 0, 1 and 0; what the bottom makes of either is computed once."""
    pytest.importorskip("timm")
    ref = f"timm:{TIMM[family]}" if family in TIMM else f"file:{hub(family)}"

    def make(cache: str, views: int = 2) -> Loop:
        more = {"augment": Augment(views=views, share=1.0 if family == "bert" else 0.5)}
        return network_loop(ref, method, cache, family != "bert", more)

    kept, plain = both(make)
    assert len(once(kept)) == 1, kept.bottom
    assert not kept.notes, "the views changed the rows"
    assert difference(plain.model, losses_of(make("off", 3))[0].model) > 1e-4, "the epochs see what they are to see"
    three, fresh = losses_of(make("auto", 3))[0], losses_of(make("auto", 0))[0]
    assert not three.bottom, "in three epochs nothing is gained by keeping three views"
    assert any("'augment' changes batches" in line for line in fresh.bottom)


def test_views_cannot_be_kept_below_a_method_that_changes_batches(hub: Callable[[str], Path]) -> None:
    ref = f"file:{hub('vit')}"
    more = {"augment": Augment(views=2), "mixup": Mixup()}
    result, _ = losses_of(network_loop(ref, Freeze(top=1), "auto", True, more))
    assert any("'mixup' changes batches" in line for line in result.bottom)


def foreseen(loop: Loop, epochs: int = 2) -> Callable[[Batch], Batch] | None:
    """What a plan expects of the run, before it is begun."""
    prefix = Prefix(loop.hooks, loop.train_rows, loop.validation, loop.training.cache)
    model = prefix.adapt(copy.deepcopy(loop.model))
    learning = {id(p) for group in loop.hooks.groups(model) for p in group.parameters}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in learning)
    set_modes(model)
    found = prefix.foreseen(model, epochs)
    if found is None:
        return None
    assert found[0].startswith(("the frozen network", "the frozen bottom (the stem")) and "computed once" in found[0]
    return found[1]


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        (Freeze(top=1), "auto"),
        (Freeze(top=1), "off"),
        (Freeze(probe=True), "auto"),
        (Freeze(), "auto"),
        (Mixup(), "auto"),
    ],
)
def test_what_is_foreseen_is_what_is_kept(method: Method, setting: str) -> None:
    loop = tiny(method)(setting)
    bottom = foreseen(loop)
    assert (bottom is not None) == bool(once(losses_of(tiny(method)(setting))[0]))
    if bottom is not None:
        loop.model.eval()
        batch = loop.train_rows.batch([0, 1, 2])
        started = bottom(batch)
        assert started.kept is not None and len(started.kept.states) == 3
        torch.testing.assert_close(loop.model(started)[1], loop.model(batch)[1])


def test_nothing_is_foreseen_without_room_or_epochs() -> None:
    make = tiny(Freeze(top=1))
    assert foreseen(make("auto"), epochs=1) is None
    assert foreseen(make("1KB")) is None
    assert foreseen(make("auto")) is not None


def test_bf16_keeps_what_bf16_made() -> None:
    kept = make_loop({"freeze": Freeze(top=1)}, epochs=3, validation=make_rows(24))
    kept.ways = Ways("bf16")
    plain = make_loop({"freeze": Freeze(top=1)}, epochs=3, validation=make_rows(24), cache="off")
    plain.ways = Ways("bf16")
    (a, ours), (b, theirs) = losses_of(kept), losses_of(plain)
    assert len(once(a)) == 1
    assert np.allclose(ours, theirs, rtol=0, atol=2e-2)
    assert abs(a.history[0]["accuracy"] - b.history[0]["accuracy"]) < 0.1


def test_validation_rows_are_kept_in_what_they_are_answered_in() -> None:
    loops = [make_loop({"freeze": Freeze(top=1)}, epochs=3, validation=make_rows(24), cache=c) for c in ("auto", "off")]
    for loop in loops:
        loop.answers = "bf16"
    (a, ours), (b, theirs) = map(losses_of, loops)
    assert len(once(a)) == 1
    assert np.allclose(ours, theirs, rtol=0, atol=1e-5), "the steps are those of fp32"
    assert [kind for _, _, kind in loops[0].prefix._tried(a.model, 1)[0]] == ["fp32", "bf16"]
    assert abs(a.history[0]["accuracy"] - b.history[0]["accuracy"]) < 0.1
