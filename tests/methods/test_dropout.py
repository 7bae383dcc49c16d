from __future__ import annotations

from typing import Any

import pytest
import torch
from method_helpers import make_batch, make_context, make_model, outputs
from torch import nn

from headstart.errors import MethodError
from headstart.methods.dropout import Dropout

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 30}


class Holder(nn.Module):
    """A real network in the backbone's place."""

    def __init__(self, network: nn.Module, inputs: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.backbone, self.head, self.inputs = network, nn.Linear(16, 3), inputs

    def answer(self) -> torch.Tensor:
        found = self.backbone(**self.inputs)
        return found if isinstance(found, torch.Tensor) else found.last_hidden_state  # type: ignore[no-any-return]


def real(family: str) -> Holder:
    ids = {"input_ids": torch.arange(2, 14).view(2, 6)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family == "timm":
            timm = pytest.importorskip("timm")
            network = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0)
            return Holder(network, {"x": torch.rand(2, 3, 32, 32)})
        if family == "torch":
            layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
            return Holder(layer, {"src": torch.rand(2, 6, 16)})
        import transformers as hf

        if family == "vit":
            config = hf.ViTConfig(**{k: v for k, v in SMALL.items() if k != "vocab_size"}, image_size=8, patch_size=4)
            return Holder(hf.ViTModel(config), {"pixel_values": torch.rand(2, 3, 8, 8)})
        configs = {
            "bert": lambda: hf.BertConfig(**SMALL),
            "mpnet": lambda: hf.MPNetConfig(**SMALL),
            "modernbert": lambda: hf.ModernBertConfig(**SMALL, pad_token_id=0, cls_token_id=1, sep_token_id=1),
            "distilbert": lambda: hf.DistilBertConfig(vocab_size=30, dim=16, n_layers=2, n_heads=2, hidden_dim=24),
            "deberta": lambda: hf.DebertaV2Config(**SMALL),
            "albert": lambda: hf.AlbertConfig(**SMALL, embedding_size=16),
        }
        return Holder(hf.AutoModel.from_config(configs[family]()), ids)


FAMILIES = ("bert", "mpnet", "modernbert", "distilbert", "deberta", "albert", "vit", "timm", "torch")


def varies(model: Holder) -> bool:
    torch.manual_seed(1)
    model.train()
    with torch.no_grad():
        return not torch.equal(model.answer(), model.answer())


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_dropout_of_real_networks_really_changes(family: str) -> None:
    model = real(family)
    before = varies(model)
    off = Dropout(hidden=0, attention=0)
    off.adapt(model, make_context())
    assert not varies(model), "some dropout is left"
    on = Dropout(attention=0.5)
    on.adapt(model, make_context())
    assert varies(model), "attention dropout is not read from where it was set"
    on.finish(model, make_context())
    assert not varies(model)
    off.finish(model, make_context())
    assert varies(model) == before


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "modernbert"])
def test_hidden_dropout_of_real_networks_changes_apart_from_attention(family: str) -> None:
    model = real(family)
    Dropout(hidden=0.5, attention=0).adapt(model, make_context())
    attention = [m for m in model.backbone.modules() if hasattr(m, "p") and m.p == 0]
    hidden = [m for m in model.backbone.modules() if hasattr(m, "p") and m.p == 0.5]
    assert hidden and varies(model)
    assert len(hidden) > len(attention)


def test_the_head_sees_dropped_features_in_training_alone() -> None:
    model, batch = make_model().eval(), make_batch()
    pooled = model.backbone(batch).pooled.detach()
    plain = outputs(make_model(), batch)
    method = Dropout(head=0.5)
    method.adapt(model, make_context())
    assert torch.equal(outputs(model, batch), plain)
    model.head.train()
    torch.manual_seed(7)
    found = model(batch)[1]
    torch.manual_seed(7)
    keep = torch.nn.functional.dropout(torch.ones_like(pooled), 0.5)
    torch.testing.assert_close(found, pooled * keep @ model.head.weight.T + model.head.bias)
    method.finish(model, make_context())
    model.head.train()
    assert torch.equal(model(batch)[1], plain) and not method.remains()


def test_own_rates_come_back() -> None:
    model = make_model()
    rates = [m.p for m in model.modules() if isinstance(m, nn.Dropout)]
    method = Dropout(hidden=0.4)
    method.adapt(model, make_context())
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.4}
    method.finish(model, make_context())
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == rates


@pytest.mark.parametrize(("kind", "option"), [("image", "hidden"), ("image", "attention"), ("text", "attention")])
def test_dropout_that_is_not_there_is_refused(kind: str, option: str) -> None:
    with pytest.raises(MethodError, match=f"no {option} dropout to set: leave dropout:{option} out"):
        Dropout(**{option: 0.1}).adapt(make_model(kind), make_context(kind))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"hidden": 1.0}, "expected dropout:hidden to be a number of at least 0 and at most"),
        ({"attention": -0.1}, "expected dropout:attention to be a number of at least 0"),
        ({"head": None}, "expected dropout:head to be a number"),
        ({"head": 0}, "received dropout:head=0 alone"),
    ],
)
def test_a_bad_option_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(MethodError, match=says):
        Dropout(**options)
