"""(IA)^3 on a real, tiny transformers network and on a convolutional one, with PEFT itself as the judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from method_helpers import learn, make_batch, make_context, make_model, outputs
from test_lora import bert, bert_model, hidden, write
from torch import Tensor

import headstart as hs
from headstart.errors import MethodError, ProofError
from headstart.methods.ia3 import IA3
from headstart.methods.lora import LoRA
from headstart.model import Model
from method_runs import make_prunable

peft = pytest.importorskip("peft")


def trained(method: IA3, model: Model | None = None, kind: str = "text") -> Model:
    model = model or bert_model()
    method.adapt(model, make_context(kind))
    learn(model, method, make_context(kind), make_batch(kind), steps=5, rate=1.0)
    return model


def scales(model: Model) -> dict[str, Tensor]:
    """Layer name -> its vector."""
    names = dict(model.backbone.network.named_parameters())
    return {n.partition(".ia3_l")[0]: p.detach().flatten().clone() for n, p in names.items() if ".ia3_l" in n}


def test_keys_values_and_inner_activations_are_scaled_and_nothing_else_learns() -> None:
    model, batch, method = bert_model(), make_batch(), IA3()
    before = outputs(model, batch)
    method.adapt(model, make_context())
    assert torch.equal(outputs(model, batch), before), "the scales start at one"
    (group,) = method.groups(model, make_context())
    assert group.lr_scale == method.speed == 20
    found = scales(model)
    assert set(found) == {
        f"encoder.layer.{i}.{name}"
        for i in range(2)
        for name in ("attention.self.key", "attention.self.value", "output.dense")
    }
    assert sum(p.numel() for p in group.parameters) == 2 * (16 + 16 + 24)
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(".ia3_l" in names[id(p)] for p in group.parameters)


def test_the_block_is_the_papers() -> None:
    """One BERT block by hand, with scales at the paper's three places."""
    from torch.nn.functional import gelu, layer_norm

    model = bert_model()
    IA3().adapt(model, make_context())
    model.eval()
    block = model.backbone.network.encoder.layer[0]
    torch.manual_seed(0)
    x = 30 * torch.randn(2, 5, 16)  # so large that the keys of a random network matter
    with torch.no_grad():
        for name, p in block.named_parameters():
            if "ia3_l" in name:
                p.copy_(1 + torch.randn_like(p))
    with torch.no_grad():
        answer = block(x)
        answer = answer[0] if isinstance(answer, tuple) else answer
    l_k, l_v, l_ff = (scales(model)[f"encoder.layer.0.{n}"] for n in (
        "attention.self.key", "attention.self.value", "output.dense"
    ))  # fmt: skip
    plain = bert().encoder.layer[0]
    inside, out = plain.attention.self, plain.attention.output
    with torch.no_grad():
        q = x @ inside.query.weight.T + inside.query.bias
        k = l_k * (x @ inside.key.weight.T + inside.key.bias)
        v = l_v * (x @ inside.value.weight.T + inside.value.bias)
        heads = []
        for h in range(2):
            part = slice(8 * h, 8 * h + 8)
            weights = (q[..., part] @ k[..., part].transpose(1, 2) / 8**0.5).softmax(-1)
            heads.append(weights @ v[..., part])
        a = torch.cat(heads, -1) @ out.dense.weight.T + out.dense.bias
        a = layer_norm(a + x, (16,), out.LayerNorm.weight, out.LayerNorm.bias, out.LayerNorm.eps)
        inner = l_ff * gelu(a @ plain.intermediate.dense.weight.T + plain.intermediate.dense.bias)
        y = inner @ plain.output.dense.weight.T + plain.output.dense.bias
        norm = plain.output.LayerNorm
        expected = layer_norm(y + a, (16,), norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "timm", "image"])
def test_merging_keeps_the_answers_and_the_names(kind: str) -> None:
    modality = "image" if kind == "image" else "text"
    model = bert_model() if kind == "bert" else make_prunable(modality)
    batch, method = make_batch(modality), IA3()
    names, start = list(model.state_dict()), outputs(model, batch)
    trained(method, model, modality)
    before = outputs(model, batch)
    assert not torch.allclose(before, start, atol=1e-3), "nothing was learned, so nothing is shown"
    found = method.finish(model, make_context(modality))
    torch.testing.assert_close(outputs(found, batch), before, atol=1e-5, rtol=1e-4)
    assert list(found.state_dict()) == names
    assert not hasattr(found.backbone.network, "peft_config")
    assert not method.remains()


def test_fused_queries_keys_and_values_and_convolutions_are_found() -> None:
    for kind, endings in (("text", {"attn.qkv", "mlp.fc2"}), ("image", {"conv_pwl"})):
        model = make_prunable(kind)
        IA3().adapt(model, make_context(kind))
        assert {
            name.partition("layers.")[2].partition(".")[2].removeprefix("block.") for name in scales(model)
        } == endings


def test_a_wrong_merge_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    method = IA3()
    model = trained(method)
    kind = type(model.backbone.network.encoder.layer[0].attention.self.key)
    real = kind.merge

    def wrong(self: Any, **options: Any) -> None:
        real(self, **options)
        self.get_base_layer().weight.data *= 1.05

    monkeypatch.setattr(kind, "merge", wrong)
    with pytest.raises(ProofError, match="ia3:merge=false"):
        method.finish(model, make_context())


def test_peft_reads_what_is_written(tmp_path: Path) -> None:
    for merge in (True, False):
        method = IA3(merge=merge)
        model, batch = trained(method), make_batch()
        expected = hidden(model.backbone.network, batch)
        method.finish(model, make_context())
        folder = write(method.artefacts(), tmp_path / str(merge))
        theirs = peft.PeftModel.from_pretrained(bert(), folder)
        torch.testing.assert_close(hidden(theirs, batch), expected, atol=1e-5, rtol=1e-4)
        assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "IA3"


@pytest.mark.parametrize("feedforward", [["output.dense"], r".*layer\.\d+\.output\.dense"])
def test_a_folder_that_peft_wrote_starts_a_run(tmp_path: Path, feedforward: Any) -> None:
    targets = ["key", "output.dense"] if isinstance(feedforward, list) else r".*(key|output\.dense)"
    theirs = peft.get_peft_model(bert(), peft.IA3Config(target_modules=targets, feedforward_modules=feedforward))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "ia3_l" in name:
                p.copy_(1 + 0.5 * torch.randn_like(p))
    theirs.save_pretrained(tmp_path)
    batch = make_batch()
    expected = hidden(theirs, batch)
    for merge in (True, False):
        method, model = IA3(init=str(tmp_path), merge=merge), bert_model()
        method.adapt(model, make_context())
        torch.testing.assert_close(hidden(model.backbone.network, batch), expected)
        method.finish(model, make_context())
        torch.testing.assert_close(hidden(model.backbone.network, batch), expected, atol=1e-5, rtol=1e-4)
    options = json.loads(json.dumps(method.options()))
    assert options["init"] is None
    again = bert_model(seed=5)
    IA3(**options).adapt(again, make_context())
    again.load_state_dict(model.state_dict())
    assert torch.equal(outputs(again, batch), outputs(model, batch))


def test_layers_can_be_named() -> None:
    model = bert_model()
    IA3(targets="value").adapt(model, make_context())
    assert set(scales(model)) == {f"encoder.layer.{i}.attention.self.value" for i in range(2)}
    model = bert_model()
    IA3(feedforward=["intermediate.dense"]).adapt(model, make_context())
    assert {len(v) for v in scales(model).values()} == {16}, "the input of the layer is scaled"


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match=r"ia3:targets.*received 'valu'"):
        IA3(targets=["valu"]).adapt(bert_model(), make_context())
    with pytest.raises(MethodError, match="ia3:targets scales the output"):
        IA3(targets=["key"], feedforward=["key"]).adapt(bert_model(), make_context())
    with pytest.raises(MethodError, match="found no keys"):
        IA3().adapt(make_model(), make_context())
    with pytest.raises(MethodError, match=r"ia3:init.*and ia3:targets"):
        IA3(init="somewhere", targets=["key"])
    with pytest.raises(MethodError, match="ia3:speed"):
        IA3(speed=0)
    with pytest.raises(MethodError, match="ia3:feedforward"):
        IA3(feedforward=[])
    with pytest.raises(MethodError, match="not merged"):
        IA3().adapt(trained(IA3(merge=False)), make_context())
    method = LoRA()
    model = bert_model()
    method.adapt(model, make_context())
    method.finish(model, make_context())
    folder = write(method.artefacts(), tmp_path)
    with pytest.raises(MethodError, match="IA3, received LORA"):
        IA3(init=str(folder)).adapt(bert_model(), make_context())


@pytest.mark.parametrize("merge", [True, False])
def test_a_bundle_keeps_it(tiny_bert: Path, tmp_path: Path, merge: bool) -> None:
    texts = [f"{a} {b}" for a in ("where is my parcel", "refund please", "password lost") for b in ("today", "now")]
    model = hs.fit(
        texts, ["a", "a", "b", "b", "c", "c"], backbone=f"file:{tiny_bert}", methods=[hs.methods.IA3(merge=merge)],
        epochs=2,
    )  # fmt: skip
    folder = model.save(tmp_path / "bundle")
    assert (hs.load(folder).outputs(texts) == model.outputs(texts)).all()
    assert (folder / "adapter" / "adapter_config.json").is_file()
    assert any("ia3_l" in name for name in model.model.state_dict()) is not merge
