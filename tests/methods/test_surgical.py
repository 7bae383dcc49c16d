from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from method_helpers import make_batch, make_context, make_model
from torch import Tensor

import headstart as hs
from headstart.errors import MethodError
from headstart.methods.surgical import Surgical
from headstart.model import Model
from headstart.protocols import Context
from headstart.values import Batch, Progress
from method_runs import make_loop, same, train, weights

KINDS = pytest.mark.parametrize("kind", ["text", "image"])


def batches(kind: str, count: int = 3) -> list[Batch]:
    return [make_batch(kind, seed=seed) for seed in range(count)]


def looking(kind: str, given: list[Batch], epoch: int = 0) -> Context:
    def look() -> Iterator[Batch]:
        return iter(given)

    return make_context(kind, batches=look, progress=Progress(0, 10, epoch, 5))


def ratios(model: Model, given: list[Batch]) -> Tensor:
    """The paper's measure, one tensor at a time, over stem, blocks and tail."""
    backbone = model.backbone
    parts = [[*backbone.stem], *([block] for block in backbone.blocks), [*backbone.tail]]
    model.eval()
    total = torch.zeros(len(parts))
    for batch in given:
        model.zero_grad()
        outputs = model(batch)[1]
        rows = [-outputs[i].log_softmax(0)[batch.labels[i]] * batch.weight[i] for i in range(len(batch))]  # type: ignore[index]
        (sum(rows) / batch.weight.sum()).backward()  # type: ignore[union-attr]
        for number, part in enumerate(parts):
            tensors = [p for module in part for p in module.parameters()]
            pull = sum(float((p.grad**2).sum()) for p in tensors) ** 0.5
            size = sum(float((p.detach() ** 2).sum()) for p in tensors) ** 0.5
            total[number] += pull / size / len(given)
    return total


@KINDS
def test_soft_rates_are_the_papers(kind: str) -> None:
    model, given = make_model(kind), batches(kind)
    groups = Surgical(soft=True, batches=3).groups(model, looking(kind, given))
    expected = ratios(make_model(kind), given)
    assert len(groups) == 5
    torch.testing.assert_close(torch.tensor([g.lr_scale for g in groups]), expected / expected.max())
    assert sum(len(g.parameters) for g in groups) == len(list(model.backbone.parameters()))


@KINDS
@pytest.mark.parametrize("blocks", [1, 2])
def test_the_most_pulled_parts_learn_alone(kind: str, blocks: int) -> None:
    model, given = make_model(kind), batches(kind)
    method = Surgical(blocks=blocks, batches=3)
    groups = method.groups(model, looking(kind, given))
    best = ratios(make_model(kind), given).topk(blocks).indices.tolist()
    backbone = model.backbone
    parts = [[*backbone.stem], *([block] for block in backbone.blocks), [*backbone.tail]]
    expected = {id(p) for number in best for module in parts[number] for p in module.parameters()}
    assert {id(p) for g in groups for p in g.parameters} == expected
    assert {g.lr_scale for g in groups} == {1.0}
    (note,) = method.notes()
    names = ["the stem", "block 1 of 3", "block 2 of 3", "block 3 of 3", "the tail"]
    assert note.startswith(f"surgical: {' and '.join(names[i] for i in sorted(best))} learned")


def test_only_so_many_batches_are_looked_at_and_the_choice_is_kept() -> None:
    model, given, method = make_model(), batches("text", 4), Surgical(batches=2)
    first = method.groups(model, looking("text", given))
    assert method.ratios_ == pytest.approx(ratios(make_model(), given[:2]).tolist())
    with torch.no_grad():
        for p in first[0].parameters:
            p.mul_(1e6)
    kept = method.groups(model, looking("text", given, epoch=3))
    assert {id(p) for p in kept[0].parameters} == {id(p) for p in first[0].parameters}


def test_soft_measures_anew_each_epoch_and_not_within_one() -> None:
    model, given, method = make_model(), batches("text"), Surgical(soft=True)
    first = [g.lr_scale for g in method.groups(model, looking("text", given))]
    with torch.no_grad():
        for p in model.backbone.blocks[0].parameters():
            p.mul_(3)
    assert [g.lr_scale for g in method.groups(model, looking("text", given))] == first
    assert [g.lr_scale for g in method.groups(model, looking("text", given, epoch=1))] != first


def test_measuring_leaves_no_trace() -> None:
    model = make_model("image").train()
    model.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    Surgical().groups(model, looking("image", batches("image")))
    assert same(model.state_dict(), before)
    assert all(module.training for module in model.modules())
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_without_a_run_every_part_counts() -> None:
    model = make_model()
    (group,) = Surgical().groups(model, make_context())
    assert {id(p) for p in group.parameters} == {id(p) for p in model.backbone.parameters()}


def test_a_state_brings_the_choice_back() -> None:
    model, method = make_model(), Surgical()
    assert method.state() == {} and method.notes() == []
    expected = method.groups(model, looking("text", batches("text")))
    again = Surgical()
    again.load_state(method.state(), model)
    found = again.groups(model, make_context())
    assert [[id(p) for p in g.parameters] for g in found] == [[id(p) for p in g.parameters] for g in expected]
    assert again.notes() == method.notes()


@KINDS
@pytest.mark.parametrize("options", [{"blocks": 2}, {"soft": True}])
def test_a_run_cut_within_an_epoch_goes_on_with_the_same_rates(kind: str, options: Any, tmp_path: Path) -> None:
    def loop(**more: Any) -> Any:
        return make_loop(["surgical"], kind, methods={"surgical": Surgical(**options)}, **more)

    whole = loop()
    expected = weights(train(whole))

    class Cut(Exception):
        pass

    def cut(event: str, figures: Any) -> None:
        if event == "step" and figures["step"] == 5:
            raise Cut

    checkpoint = tmp_path / "state.safetensors"
    with pytest.raises(Cut):
        train(loop(checkpoint=checkpoint), cut)
    resumed = loop(checkpoint=checkpoint)
    assert same(weights(train(resumed, resume=True)), expected)
    assert resumed.hooks.methods["surgical"].notes() == whole.hooks.methods["surgical"].notes()


def test_what_is_not_chosen_stays_as_it_was() -> None:
    loop = make_loop(["surgical"], "text")
    before = weights(type("R", (), {"model": loop.model})())  # type: ignore[arg-type]
    after = weights(train(loop))
    (group,) = loop.hooks.groups(loop.model)
    names = {id(p): name for name, p in loop.model.named_parameters()}
    learned = {names[id(p)] for p in group.parameters}
    for name in before:
        if not name.startswith("head"):
            assert torch.equal(before[name], after[name]) == (name not in learned), name


def test_bad_options_are_refused() -> None:
    for options in ({"blocks": 0}, {"soft": 1}, {"batches": 0}):
        with pytest.raises(MethodError, match=f"surgical:{next(iter(options))}"):
            Surgical(**options)  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="leave one of them out"):
        Surgical(blocks=2, soft=True)
    with pytest.raises(MethodError, match="at most 5"):
        Surgical(blocks=6).groups(make_model(), make_context())


def test_the_report_says_what_was_chosen(tiny_bert: Path) -> None:
    texts = [f"{a} {b}" for a in ("where is my parcel", "refund please", "password lost") for b in ("today", "now")]
    heard: list[str] = []
    model = hs.fit(
        texts, ["a", "a", "b", "b", "c", "c"], backbone=f"file:{tiny_bert}", methods=[Surgical()], epochs=1,
        listen=lambda event, figures: heard.append(str(figures.get("text"))) if event == "note" else None,
    )  # fmt: skip
    (stage,) = model.report["stages"]  # type: ignore[index]
    assert any(note.startswith("surgical: ") for note in stage["notes"])
    assert any(text.startswith("surgical: ") for text in heard)
