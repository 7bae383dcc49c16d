"""LoRA on the tiny backbones and on a real, tiny transformers network, with PEFT itself as the judge."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from method_helpers import TinyBackbone, learn, make_batch, make_context, make_model, outputs
from torch import Tensor, nn

from headstart.errors import MethodError, MissingExtra, ProofError
from headstart.methods.adapter import CHILD, Adapter
from headstart.methods.lora import LoRA
from headstart.model import Model
from headstart.values import Batch, Features

peft = pytest.importorskip("peft")
LINEAR = {"query", "key", "value", "dense"}


def bert(seed: int = 0) -> Any:
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=16,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False)


class BertBackbone(TinyBackbone):
    def __init__(self, seed: int = 0) -> None:
        super().__init__(bert(seed), "text")
        self.ref = "hf:someone/tiny"

    @property
    def stem(self) -> list[nn.Module]:
        return [self.network.embeddings]

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.network.encoder.layer)

    @property
    def tail(self) -> list[nn.Module]:
        return []

    def features(self, batch: Batch) -> Features:
        hidden = self.network(**batch.inputs).last_hidden_state
        return Features(hidden[:, 0], hidden)

    def zero_shift(self, batch: Batch) -> Tensor:
        return torch.zeros(*batch.inputs["input_ids"].shape, 16)


def bert_model(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return Model(BertBackbone(seed), nn.Linear(16, 3))


def hidden(network: nn.Module, batch: Batch) -> Tensor:
    network.eval()
    with torch.no_grad():
        return network(**batch.inputs).last_hidden_state  # type: ignore[no-any-return]


def trained(method: LoRA, model: Model | None = None) -> Model:
    model = model or bert_model()
    method.adapt(model, make_context())
    learn(model, method, make_context(), make_batch(), steps=5, rate=0.5)
    return model


def write(files: dict[str, bytes], root: Path) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root / "adapter"


OPTIONS = [{}, {"rslora": True, "r": 4}, {"dora": True}, {"alpha": 3.0, "dropout": 0.2}, {"targets": ["query"]}]


@pytest.mark.parametrize("options", OPTIONS)
def test_merging_keeps_the_answers_and_the_names(options: dict[str, Any]) -> None:
    model, batch = bert_model(), make_batch()
    names, start = list(model.state_dict()), outputs(model, batch)
    flags = {name: p.requires_grad for name, p in model.backbone.named_parameters()}
    kinds = [type(module) for module in model.modules()]
    method = LoRA(**options)
    trained(method, model)
    before = outputs(model, batch)
    assert not torch.allclose(before, start, atol=1e-3), "nothing was learned, so nothing is shown"
    found = method.finish(model, make_context())
    torch.testing.assert_close(outputs(found, batch), before, atol=1e-5, rtol=1e-4)
    assert list(found.state_dict()) == names
    assert [type(module) for module in found.modules()] == kinds
    assert {name: p.requires_grad for name, p in found.backbone.named_parameters()} == flags
    assert not hasattr(found.backbone.network, "peft_config")
    assert not method.remains()


def test_the_update_is_the_papers() -> None:
    """W + (alpha / r) B A, computed by hand from the factors that were learned."""
    method = LoRA(r=3, alpha=5.0)
    model = trained(method)
    plain = {name: p.detach().clone() for name, p in bert_model().backbone.network.named_parameters()}
    layer = model.backbone.network.encoder.layer[1].attention.self.value
    a, b = layer.lora_A["default"].weight.detach().clone(), layer.lora_B["default"].weight.detach().clone()
    assert a.shape == (3, 16) and b.shape == (16, 3)
    method.finish(model, make_context())
    merged = model.backbone.network.encoder.layer[1].attention.self.value.weight
    expected = plain["encoder.layer.1.attention.self.value.weight"] + 5.0 / 3 * b @ a
    torch.testing.assert_close(merged.detach(), expected)


def test_only_the_factors_learn_and_the_start_is_the_backbone() -> None:
    model, batch, method = bert_model(), make_batch(), LoRA()
    before = outputs(model, batch)
    method.adapt(model, make_context())
    torch.testing.assert_close(outputs(model, batch), before)
    (group,) = method.groups(model, make_context())
    names = {id(p): name for name, p in model.named_parameters()}
    learning = {names[id(p)] for p in group.parameters}
    assert learning == {name for name in names.values() if ".lora_" in name}
    layers = {name.partition(".lora_")[0].rpartition(".")[2] for name in learning}
    assert layers == LINEAR and len(learning) == 2 * 2 * 6


def test_convolutions_get_factors_where_they_are_pointwise() -> None:
    model, batch, method = make_model("image"), make_batch("image"), LoRA(r=2)
    method.adapt(model, make_context("image"))
    names = [name for name, p in model.backbone.named_parameters() if ".lora_A" in name]
    assert len(names) == 3 and all(".point." in name for name in names), "depthwise convolutions stay as they are"
    learn(model, method, make_context("image"), batch, rate=0.5)
    before, merged = outputs(model, batch), method.finish(model, make_context("image"))
    torch.testing.assert_close(outputs(merged, batch), before, atol=1e-5, rtol=1e-4)


def test_a_dense_convolution_can_be_asked_for() -> None:
    model, batch, method = make_model("image"), make_batch("image"), LoRA(r=2, targets=["first"])
    # `first` stands in the stem: its full name reaches it, an ending only looks inside the blocks.
    method.adapt(model, make_context("image"))
    learn(model, method, make_context("image"), batch, rate=0.5)
    before, merged = outputs(model, batch), method.finish(model, make_context("image"))
    torch.testing.assert_close(outputs(merged, batch), before, atol=1e-5, rtol=1e-4)


def test_a_wrong_merge_is_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    method = LoRA()
    model = trained(method)
    kind = type(model.backbone.network.encoder.layer[0].attention.self.query)
    real = kind.get_delta_weight
    monkeypatch.setattr(kind, "get_delta_weight", lambda self, name: 1.05 * real(self, name))
    with pytest.raises(ProofError, match="merge=false"):
        method.finish(model, make_context())


def test_peft_reads_what_is_written(tmp_path: Path) -> None:
    for merge in (True, False):
        method = LoRA(r=4, merge=merge)
        model, batch = trained(method), make_batch()
        expected = hidden(model.backbone.network, batch)
        method.finish(model, make_context())
        folder = write(method.artefacts(), tmp_path / str(merge))
        theirs = peft.PeftModel.from_pretrained(bert(), folder)
        torch.testing.assert_close(hidden(theirs, batch), expected, atol=1e-5, rtol=1e-4)
        record = json.loads((folder / "adapter_config.json").read_text())
        assert record["base_model_name_or_path"] == "someone/tiny"
        assert (record["r"], record["lora_alpha"], record["peft_type"]) == (4, 8, "LORA")


@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_the_files_are_those_of_peft(tmp_path: Path) -> None:
    """Same names and same tensors as PEFT's own save_pretrained."""
    from safetensors.torch import load_file

    method = LoRA(r=4, dora=True, merge=False)
    model = trained(method)
    method.finish(model, make_context())
    ours = write(method.artefacts(), tmp_path)
    theirs = peft.PeftModel.from_pretrained(bert(), ours)
    theirs.save_pretrained(tmp_path / "theirs")
    one, two = (load_file(f / "adapter_model.safetensors") for f in (ours, tmp_path / "theirs"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    keys = [set(json.loads((f / "adapter_config.json").read_text())) for f in (ours, tmp_path / "theirs")]
    assert keys[0] == keys[1]


def from_peft(folder: Path, seed: int = 0, network: Any = None, **options: Any) -> Any:
    """A folder that PEFT wrote, with factors that are not zero."""
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 7, "target_modules": ["query", "value"], **options})
    theirs = peft.get_peft_model(network if network is not None else bert(), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn_like(p))
    theirs.save_pretrained(folder)
    return theirs


def test_a_folder_that_peft_wrote_starts_a_run(tmp_path: Path) -> None:
    batch, theirs = make_batch(), from_peft(tmp_path)
    expected = hidden(theirs, batch)
    for merge in (True, False):
        method, model = LoRA(init=str(tmp_path), merge=merge), bert_model()
        method.adapt(model, make_context())
        torch.testing.assert_close(hidden(model.backbone.network, batch), expected)
        (group,) = method.groups(model, make_context())
        assert len(group.parameters) == 2 * 2 * 2
        method.finish(model, make_context())
        torch.testing.assert_close(hidden(model.backbone.network, batch), expected, atol=1e-5, rtol=1e-4)


def test_what_stays_is_rebuilt_without_the_folder(tmp_path: Path) -> None:
    from_peft(tmp_path / "peft", use_rslora=True)
    method, model, batch = LoRA(init=str(tmp_path / "peft"), merge=False), bert_model(), make_batch()
    trained(method, model)
    method.finish(model, make_context())
    assert method.remains()
    options = json.loads(json.dumps(method.options()))
    assert options["init"] is None and options["r"] == 3 and options["rslora"] is True
    again = bert_model(seed=5)
    LoRA(**options).adapt(again, make_context())
    again.load_state_dict(model.state_dict())
    assert torch.equal(outputs(again, batch), outputs(model, batch))


def test_a_folder_of_a_model_with_a_head_is_read_and_the_head_is_named(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(**{**bert().config.to_dict(), "num_labels": 3})
    whole = BertForSequenceClassification(config)
    whole.bert.load_state_dict(bert().state_dict(), strict=False)
    theirs = from_peft(tmp_path, network=whole, task_type="SEQ_CLS")
    method, model, batch = LoRA(init=str(tmp_path)), bert_model(), make_batch()
    with pytest.warns(UserWarning, match="classifier"):
        method.adapt(model, make_context())
    expected = hidden(theirs.base_model.model.bert, batch)
    torch.testing.assert_close(hidden(model.backbone.network, batch), expected)


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def refuse(folder: Path, match: str, **options: Any) -> None:
        with pytest.raises(MethodError, match=match):
            LoRA(init=str(folder), **options).adapt(bert_model(), make_context())

    refuse(tmp_path / "nowhere", "has no adapter_config.json")
    from_peft(tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"\0" * 20)
    refuse(tmp_path / "a", "cannot be read")
    (tmp_path / "a" / "adapter_model.safetensors").rename(tmp_path / "a" / "adapter_model.bin")
    refuse(tmp_path / "a", "safe_serialization")
    from_peft(tmp_path / "b", rank_pattern={"query": 2})
    refuse(tmp_path / "b", "rank_pattern", merge=False)
    LoRA(init=str(tmp_path / "b")).adapt(bert_model(), make_context())
    from_peft(tmp_path / "c", init_lora_weights="pissa")
    refuse(tmp_path / "c", "init_lora_weights")
    record = json.loads((tmp_path / "c" / "adapter_config.json").read_text())
    (tmp_path / "c" / "adapter_config.json").write_text(json.dumps({**record, "peft_type": "LOHA"}))
    refuse(tmp_path / "c", "LORA, received LOHA")
    from_peft(tmp_path / "d", network=make_model().backbone.network, target_modules=["mixer"])
    refuse(tmp_path / "d", "another network.*layers.0.mixer")
    from transformers import BertConfig, BertModel

    small = BertModel(BertConfig(**{**bert().config.to_dict(), "hidden_size": 8}), add_pooling_layer=False)
    from_peft(tmp_path / "e", network=small)
    refuse(tmp_path / "e", "does not fit")


def test_unknown_targets_are_refused_with_the_known_ones() -> None:
    with pytest.raises(MethodError, match=r"received 'quary'.*dense, key, query, value"):
        LoRA(targets=["quary"]).adapt(bert_model(), make_context())


def test_a_lora_that_was_not_merged_is_no_base() -> None:
    model = trained(LoRA(merge=False))
    with pytest.raises(MethodError, match="not merged"):
        LoRA().adapt(model, make_context())


def test_layers_are_claimed_and_adapters_left_alone() -> None:
    model, claims = make_model(), {}  # type: ignore[var-annotated]
    Adapter().adapt(model, make_context())
    mixers = {id(block.mixer) for block in model.backbone.blocks}
    LoRA().adapt(model, make_context(claims=claims, owner="lora"))
    assert set(claims) == mixers
    assert not any(CHILD in name and "lora" in name for name, _ in model.named_parameters())


def test_factors_are_drawn_from_the_context() -> None:
    def first(seed: int) -> Tensor:
        model, state = bert_model(), torch.get_rng_state()
        LoRA().adapt(model, make_context(seed=seed))
        assert torch.equal(state, torch.get_rng_state())
        return next(p.detach() for name, p in model.named_parameters() if "lora_A" in name)

    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))


def test_merging_half_precision_keeps_its_type() -> None:
    method, model = LoRA(), bert_model()
    method.adapt(model, make_context())
    learn(model, method, make_context(), make_batch(), rate=0.5)
    twin = deepcopy(model)
    model.to(torch.bfloat16)
    method.finish(model, make_context())
    weight = model.backbone.network.encoder.layer[0].attention.self.query.weight
    layer = twin.backbone.network.encoder.layer[0].attention.self.query
    exact = layer.weight + layer.get_delta_weight("default")
    assert weight.dtype == torch.bfloat16
    torch.testing.assert_close(weight.float(), exact.detach(), atol=2e-2, rtol=2e-2)


def test_a_missing_library_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(MissingExtra, match=r"pip install 'headstart\[lora\]'"):
        LoRA().adapt(bert_model(), make_context())
