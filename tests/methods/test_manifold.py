"""Manifold mixup: hidden states mixed by hand, block by block."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from method_helpers import CLASSES, make_batch, make_context, make_model
from torch import Tensor, nn

from headstart.errors import MethodError
from headstart.methods.manifold import Manifold
from headstart.methods.mixup import Mixup
from headstart.model import Model
from headstart.values import Batch, Mix


def prepared(kind: str, seed: int = 3, **options: Any) -> tuple[Model, Batch, Batch]:
    """The model, a plain batch and the batch to be mixed."""
    method, model, batch = Manifold(**{"alpha": 1.0, **options}), make_model(kind), make_batch(kind)
    if kind == "image":  # strong pictures, so that the untrained network tells them apart
        batch = batch.replace(inputs={"pixels": 200 * batch.inputs["pixels"]})
    assert method.adapt(model, make_context(kind)) is model
    return model, batch, method.transform(batch, make_context(kind, seed))


def slowly(states: Tensor, mix: Mix, mask: Tensor | None) -> Tensor:
    """Row by row and token by token: s h_i + (1 - s) h_j, or h_i where row j has no token."""
    found = states.clone()
    for i in range(len(states)):
        j, s = int(mix.partner[i]), float(mix.share[i])
        if mask is None:
            found[i] = s * states[i] + (1 - s) * states[j]
            continue
        for t in range(states.shape[1]):
            if mask[j, t]:
                found[i, t] = s * states[i, t] + (1 - s) * states[j, t]
    return found


@pytest.mark.parametrize("block", [0, 1, 2])
@pytest.mark.parametrize("kind", ["text", "image"])
def test_the_states_of_one_block_are_mixed_by_the_equation(kind: str, block: int) -> None:
    model, batch, found = prepared(kind, first=block, last=block)
    model.eval()
    network: Any = model.backbone.network
    assert found.mix is not None and found.mix.block == block and found.inputs is batch.inputs
    if kind == "text":
        mask = batch.inputs["attention_mask"]
        x = network.embedding(batch.inputs["input_ids"])
        for number, layer in enumerate(network.layers):
            x = x * mask[..., None]
            x = layer(slowly(x, found.mix, mask) if number == block else x)[0]
        x, share = network.top(x), mask[..., None].float()
        pooled = (x * share).sum(1) / share.sum(1)
    else:
        x = network.first(batch.inputs["pixels"])
        for number, layer in enumerate(network.layers):
            x = layer(slowly(x, found.mix, None) if number == block else x)
        pooled = network.top(x).mean((2, 3))
    features, outputs = model(found)
    torch.testing.assert_close(outputs, model.head(pooled), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.pooled, pooled, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(outputs, model(batch)[1], atol=1e-4)
    torch.testing.assert_close(model(batch)[1], make_model(kind).eval()(batch)[1])  # no hook is left behind
    copy = deepcopy(model)
    torch.testing.assert_close(copy(found)[1], outputs)


def test_labels_and_weights_follow_and_each_row_is_mostly_itself() -> None:
    _, batch, found = prepared("text")
    assert found.mix is not None and found.labels is not None
    share, partner = found.mix.share, found.mix.partner
    hot = F.one_hot(batch.labels, CLASSES).float()  # type: ignore[arg-type]
    torch.testing.assert_close(found.labels, share[:, None] * hot + (1 - share[:, None]) * hot[partner])
    torch.testing.assert_close(found.weight, share * batch.weight + (1 - share) * batch.weight[partner])
    assert (share >= 0.5).all() and (share < 1).any()
    assert torch.equal(found.row, batch.row) and torch.equal(found.origin, batch.origin)


def test_padding_never_reaches_a_mixed_row() -> None:
    """Garbage in the embedding of the padding token changes nothing."""
    model, _, found = prepared("text", first=0, last=0)
    expected = model.eval()(found)[1]
    with torch.no_grad():
        model.backbone.network.embedding.weight[0] = 1e3
    torch.testing.assert_close(model(found)[1], expected)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    model, _, found = prepared(kind)
    model.eval().backbone.double()
    if kind == "image":
        found = found.replace(inputs={"pixels": found.inputs["pixels"].double()})
    weight = next(model.backbone.stem[0].parameters())  # type: ignore[union-attr]

    def loss() -> Tensor:
        return -(model(found)[1].log_softmax(1) * found.labels).double().sum()

    loss().backward()
    assert weight.grad is not None
    place = int(weight.grad.abs().argmax())
    ends = []
    with torch.no_grad():
        for step in (1e-3, -1e-3):
            weight.view(-1)[place] += step
            ends.append(float(loss()))
            weight.view(-1)[place] -= step
    assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(float(weight.grad.view(-1)[place]), rel=0.02)


def test_blocks_are_drawn_evenly_within_the_options() -> None:
    method, batch = Manifold(first=1), make_batch()
    method.adapt(make_model(), make_context())
    drawn = Counter(method.transform(batch, make_context(seed=seed)).mix.block for seed in range(300))  # type: ignore[union-attr]
    assert set(drawn) == {1, 2}
    assert drawn[1] == pytest.approx(150, abs=35)


@pytest.mark.parametrize("family", ["BertConfig", "ModernBertConfig", "DistilBertConfig"])
def test_blocks_of_real_text_networks_are_mixed(family: str) -> None:
    import transformers as hf

    from headstart.model import mixed_states

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    if family == "DistilBertConfig":
        sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24}
    network = hf.AutoModel.from_config(getattr(hf, family)(vocab_size=30, **sizes, pad_token_id=0)).eval()
    blocks = next(m for m in network.modules() if isinstance(m, nn.ModuleList) and len(m) == 2)
    inputs = {"input_ids": torch.arange(2, 14).view(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.int64)}
    batch = make_batch(rows=2).replace(inputs=inputs, mix=Mix(torch.tensor([1, 0]), torch.zeros(2), 0))
    with torch.no_grad():
        plain = network(**inputs).last_hidden_state
        with mixed_states(list(blocks), batch):  # a share of 0 makes each row the other
            swapped = network(**inputs).last_hidden_state
    torch.testing.assert_close(swapped, plain.flip(0))


def test_what_cannot_be_mixed_is_refused() -> None:
    ctx = make_context()
    with pytest.raises(MethodError, match="blocks from 0 to 2, received first=0, last=3"):
        Manifold(last=3).adapt(make_model(), ctx)
    with pytest.raises(MethodError, match="manifold:last"):
        Manifold(first=2, last=1)
    with pytest.raises(MethodError, match="adapt"):
        Manifold().transform(make_batch(), ctx)
    method = Manifold()
    method.adapt(make_model(), ctx)
    with pytest.raises(MethodError, match="mixed already"):
        method.transform(Mixup().transform(make_batch(), ctx), ctx)
    with pytest.raises(MethodError, match="mixed already"):
        Mixup().transform(method.transform(make_batch(), ctx), ctx)
    assert set(method.requires()) == {"task.mix"} and not method.remains()

    class Closed(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return ids

    from headstart.model import mixed_states

    batch = make_batch().replace(mix=Mix(torch.arange(6), torch.ones(6), 0))
    with pytest.raises(MethodError, match="receives no states"), mixed_states([block := Closed()], batch):
        block(batch.inputs["input_ids"])
