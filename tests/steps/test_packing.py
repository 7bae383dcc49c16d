"""Rows without their padding: the answers and gradients of each row alone, and only where it pays."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from headstart.backbones import _packing
from headstart.backbones._hf_text import TextBackbone
from headstart.backbones._structure import largest_list, unlabelled
from headstart.encoded import Encoded
from headstart.errors import SpecError
from headstart.model import Model
from headstart.spec import TrainingSpec
from headstart.steps import casting, packing
from headstart.steps.ways import Ways
from headstart.values import Batch, Choice
from tiny import TinyRows
from tiny import make_loop as make_small

LENGTHS = (3, 9, 1, 6, 2)


def network(kind: str) -> nn.Module:
    import transformers

    small: dict[str, Any] = dict(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=20,
    )  # fmt: skip
    if kind == "bert":
        return transformers.BertModel(transformers.BertConfig(**small), add_pooling_layer=False)
    if kind == "roberta":
        return transformers.RobertaModel(transformers.RobertaConfig(**small, pad_token_id=1), add_pooling_layer=False)
    if kind == "modernbert":
        config = transformers.ModernBertConfig(
            **small, pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3
        )
        return transformers.ModernBertModel(config)
    heads = dict(vocab_size=40, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=20)
    return transformers.DistilBertModel(transformers.DistilBertConfig(**heads))


def make(kind: str, pooling: str = "mean") -> Model:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = TextBackbone(network(kind), None, kind, (pooling,), (), {"pad_id": 0})
        backbone.wire(largest_list(backbone.network))
        for parameter in backbone.parameters():
            parameter.requires_grad_(True)
        return Model(backbone, nn.Linear(backbone.width, 3))


def batch_of(rows: list[list[int]]) -> Batch:
    return unlabelled(TinyRows(rows).take(range(len(rows))))


def rows_of(lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    return [np.random.default_rng(place).integers(4, 40, length).tolist() for place, length in enumerate(lengths)]


def answers(model: Model, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """Outputs, and the gradients of the sum of their squares."""
    outputs = model(batch)[1]
    return outputs.detach(), list(torch.autograd.grad(outputs.square().sum(), list(model.parameters())))


@pytest.mark.parametrize("pooling", ["cls", "mean", "attention"])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_packed_row_is_the_row_alone(kind: str, pooling: str) -> None:
    """Outputs row by row, and gradients, which are the sum of those of the rows."""
    model = make(kind, pooling).eval()
    with packing.within(model):
        assert _packing.can(model.backbone.network)
        outputs, gradients = answers(model, batch_of(rows_of()))
    alone = [answers(model, batch_of([row])) for row in rows_of()]
    torch.testing.assert_close(outputs, torch.cat([each for each, _ in alone]), rtol=1e-5, atol=1e-6)
    for place, gradient in enumerate(gradients):
        expected = torch.stack([each[place] for _, each in alone]).sum(0)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_the_network_sees_no_padding_and_tokens_come_back_in_their_places() -> None:
    model, sizes = make("bert").eval(), []
    batch = batch_of(rows_of())
    plain = model.backbone(batch).tokens
    inner = model.backbone.network.encoder.layer[0].forward
    model.backbone.network.encoder.layer[0].forward = lambda x, *a, **k: (sizes.append(x.shape), inner(x, *a, **k))[1]
    with packing.within(model):
        tokens = model.backbone(batch).tokens
    assert sizes == [(1, sum(LENGTHS), 16)]
    mask = batch.inputs["attention_mask"].bool()
    torch.testing.assert_close(tokens[mask], plain[mask], rtol=1e-5, atol=1e-6)
    assert not tokens[~mask].any()


@pytest.mark.parametrize(("lengths", "even", "computed"), [(LENGTHS, 8, 24), (LENGTHS, 7, 21), ((9, 8, 9), 16, 27)])
def test_in_half_precision_a_processor_computes_numbers_of_tokens_that_come_again(
    lengths: tuple[int, ...], even: int, computed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some padding is carried along, as far as there is any, and changes nothing: not what is dropped either."""
    monkeypatch.setattr(_packing, "EVEN", even)
    model, batch, sizes = make("bert").train(), batch_of(rows_of(lengths)), []
    mask, block = batch.inputs["attention_mask"].bool(), model.backbone.network.encoder.layer[0]
    inner = block.forward
    block.forward = lambda x, *a, **k: (sizes.append(x.shape[1]), inner(x, *a, **k))[1]
    found = []
    for half in (False, True):
        monkeypatch.setattr(_packing, "_in_half", lambda network, half=half: half)
        torch.manual_seed(5)
        with packing.within(model):
            features = model.backbone(batch)
            loss = features.tokens.square().sum() + features.pooled.sum()
            found.append([features.tokens, *torch.autograd.grad(loss, list(model.backbone.parameters()))])
    assert sizes == [sum(lengths), computed]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    assert not found[1][0][~mask].any()


@pytest.mark.parametrize(("kind", "half"), [("fp32", False), ("bf16", True), ("bf16_weights", True)])
def test_which_passes_run_in_half_precision(kind: str, half: bool) -> None:
    model = make("bert")
    with casting.running(model, kind):
        assert _packing._in_half(model.backbone.network) is half


def test_types_of_tokens_are_packed_too() -> None:
    model, batch = make("bert").eval(), batch_of(rows_of())
    kinds = batch.inputs["attention_mask"] * (torch.arange(9) > 1)
    batch = batch.replace(inputs={**batch.inputs, "token_type_ids": kinds})
    expected = model(batch)[1]
    with packing.within(model):
        torch.testing.assert_close(model(batch)[1], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("change", ["hook", "shift"])
def test_what_is_looked_into_or_shifted_is_not_packed(change: str) -> None:
    model, batch = make("bert").eval(), batch_of(rows_of())
    seen: list[Any] = []
    if change == "hook":
        model.backbone.blocks[0].register_forward_hook(lambda m, args, output: seen.append(args[0].shape))
    else:
        batch = batch.replace(shift=torch.full((5, 9, 16), 0.1))
    expected = model(batch)[1]
    with packing.within(model):
        torch.testing.assert_close(model(batch)[1], expected)
    assert set(seen) <= {(5, 9, 16)}


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_packed_rows_drop_what_padded_ones_drop(kind: str) -> None:
    model, batch = make(kind).train(), batch_of(rows_of())
    torch.manual_seed(5)
    outputs, gradients = answers(model, batch)
    other = answers(model, batch)[0]
    torch.manual_seed(5)
    with packing.within(model):
        found, packed = answers(model, batch)
    torch.testing.assert_close(found, outputs, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(other, outputs)
    for one, two in zip(gradients, packed, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)


def test_auto_does_not_pack_what_would_drop_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 9.0)
    monkeypatch.setattr(_packing, "_dropping", lambda drop, forward, current: forward)
    assert chosen("bert", LENGTHS) == Choice(False)
    assert chosen("bert", LENGTHS, "on") == Choice(True, "as asked")


@pytest.mark.parametrize("drawing", [False, True])
def test_packing_and_gradient_checkpointing_together(drawing: bool) -> None:
    """A block that runs again, when other rows have passed meanwhile, drops what it dropped."""
    model, batch = make("bert").train(drawing), batch_of(rows_of())
    torch.manual_seed(5)
    expected = torch.autograd.grad(model(batch)[1].square().sum(), list(model.parameters()))
    torch.manual_seed(5)
    with Ways(pack=True, recompute=True).step(model):
        outputs = model(batch)[1]
        model(batch_of(rows_of((4, 2))))
        found = torch.autograd.grad(outputs.square().sum(), list(model.parameters()))
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert model.backbone.network.config._attn_implementation == "headstart"


def encoded(lengths: tuple[int, ...]) -> Encoded:
    rows = TinyRows(rows_of(lengths))
    count = len(rows)
    return Encoded(
        rows, torch.zeros(count, dtype=torch.int64), torch.ones(count), torch.zeros(count, dtype=torch.int64)
    )


def chosen(kind: str, lengths: tuple[int, ...], setting: str = "auto") -> Choice:
    training = TrainingSpec(batch_size=8, packing=setting)  # type: ignore[arg-type]
    return packing.choose(make(kind), encoded(lengths), training, "fp32")


def pretend(monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    def seconds(model: Any, *args: Any) -> float:
        return 1 / ratio if _packing.can(model.backbone.network) else 1.0

    monkeypatch.setattr(packing, "_seconds", seconds)


@pytest.mark.parametrize(("ratio", "on"), [(1.5, True), (1.05, False), (0.5, False)])
def test_auto_packs_where_it_measured_faster(ratio: float, on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, ratio)
    found = chosen("bert", LENGTHS)
    assert found.on is on and f"53% is padding, and a step without it is {ratio:.2f} times" in found.why


@pytest.mark.parametrize(
    ("beyond", "ratio", "tried", "on"), [(1.5, 2.0, True, True), (1.5, 1.5, True, False), (5.0, 9.0, False, False)]
)
def test_packing_must_beat_what_padded_rows_can_have(
    beyond: float, ratio: float, tried: bool, on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 53 % of padding a step without it is 4.5 times as fast at most."""
    pretend(monkeypatch, ratio)
    found = packing.choose(make("bert"), encoded(LENGTHS), TrainingSpec(batch_size=8), "fp32", beyond=beyond)
    assert found.on is on and bool(found.why) is tried


def test_a_short_stage_tries_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trying takes about ten steps; with one batch an epoch, a hundred epochs are worth it."""
    pretend(monkeypatch, 2.0)
    rows, training = encoded(LENGTHS), TrainingSpec(batch_size=8)
    assert packing.choose(make("bert"), rows, training, "fp32", epochs=99) == Choice(False)
    assert packing.choose(make("bert"), rows, training, "fp32", epochs=100).on
    asked = TrainingSpec(batch_size=8, packing="on")
    assert packing.choose(make("bert"), rows, asked, "fp32", epochs=1) == Choice(True, "as asked")


def test_auto_leaves_rows_of_like_length_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 9.0)
    assert chosen("bert", (5, 5, 5, 5)) == Choice(False)
    assert chosen("bert", (5, 5, 5, 5), "on") == Choice(True, "as asked")
    assert chosen("bert", LENGTHS, "off") == Choice(False)


def test_other_families_say_that_they_are_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    small = make_small(packing="on")
    with pytest.raises(SpecError, match=r"packing = 'on' cannot be had .* its rows have no padding"):
        packing.choose(small.model, small.train_rows, small.training, "fp32")
    model = make("bert")
    model.backbone.network.config._attn_implementation = "eager"
    with pytest.raises(SpecError, match="its attention cannot be exchanged"):
        packing.choose(model, encoded(LENGTHS), TrainingSpec(packing="on"), "fp32")


@pytest.mark.parametrize("kind", ["distilbert", "modernbert"])
def test_a_family_is_right_or_refused(kind: str) -> None:
    try:
        assert chosen(kind, LENGTHS, "on").on
    except SpecError as error:
        assert "cannot be had" in str(error)


def test_a_network_that_answers_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here positions that go on from row to row."""
    whole = torch.arange
    monkeypatch.setattr(_packing.torch, "arange", lambda *args, **options: whole(*args, **options).flip(0))
    with pytest.raises(SpecError, match="packed rows do not give what padded ones give"):
        chosen("bert", LENGTHS, "on")


def test_a_run_of_the_loop_ends_with_the_same_weights(tmp_path: Path) -> None:
    from headstart.hooks import Hooks
    from headstart.loop import Loop
    from headstart.modalities.text import TextModality
    from tiny import make_rows, make_task

    found = []
    for pack in (False, True):
        torch.manual_seed(3)
        model = make("bert")
        assert any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
        rows = make_rows(24)
        rows.prepared.rows = [[token % 40 for token in row] for row in rows.prepared.rows]
        training = TrainingSpec(batch_size=8, learning_rate=1e-2)
        hooks = Hooks({}, make_task(), TextModality(), seed=0)
        loop = Loop(model, hooks, rows, None, training, 2, 1e-2, torch.device("cpu"), ways=Ways(pack=pack))
        found.append({name: value.clone() for name, value in loop.train().model.state_dict().items()})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-4)


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU with CUDA")


@gpu
def test_attention_over_rows_of_any_length_is_that_of_each_row() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 0, 0]]).cuda()
    layout = _packing.Layout.of(mask, _packing.Current())
    parts = [torch.randn(1, 2, 8, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    made = _packing._attend_flash(layout, *parts, 0.0, None)
    own = torch.autograd.grad(made.float().square().sum(), parts)
    rows = [
        nn.functional.scaled_dot_product_attention(*(part[:, :, start:stop] for part in parts))[0].transpose(0, 1)
        for start, stop in ((0, 3), (3, 7), (7, 8))
    ]
    torch.testing.assert_close(made, torch.cat(rows), rtol=3e-2, atol=3e-2)
    theirs = torch.autograd.grad(torch.cat(rows).float().square().sum(), parts)
    for one, other in zip(own, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=3e-2, atol=3e-2)


@gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_on_a_gpu_a_packed_row_is_the_row_alone(kind: str, precision: str) -> None:
    model, batch = make(kind).cuda().eval(), batch_of(rows_of()).to("cuda")
    tolerance = 1e-4 if precision == "fp32" else 5e-2
    found = []
    for around in (nullcontext(), packing.within(model)):
        with around, casting.running(model, precision):
            found.append(answers(model, batch))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=tolerance, atol=tolerance)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert float((one - other).abs().max()) <= tolerance * max(1e-3, float(one.abs().max()))


@gpu
def test_on_a_gpu_packed_rows_draw_dropout_of_their_own() -> None:
    model, batch = make("bert").cuda().train(), batch_of(rows_of()).to("cuda")
    with packing.within(model):
        torch.manual_seed(0)
        one = model(batch)[1]
        assert not torch.equal(one, model(batch)[1])
        torch.manual_seed(0)
        torch.testing.assert_close(one, model(batch)[1])
