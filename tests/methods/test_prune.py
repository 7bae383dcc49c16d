"""prune against its definitions: importance, schedule, and a cut network that answers as the masked one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_helpers import loss_of, make_batch, make_context, make_model
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import headstart as hs
from headstart.adapt import execute, make_spec, prepare
from headstart.backbones import _timm_net
from headstart.backbones import load as load_backbone
from headstart.errors import MethodError, ProofError
from headstart.methods import prune as module
from headstart.methods._structures import find
from headstart.methods.ema import EMA
from headstart.methods.lora import LoRA
from headstart.methods.prune import Prune, choose, read, written
from headstart.methods.soup import Soup
from headstart.model import Model
from headstart.protocols import Context, Method
from headstart.spec import BackboneSpec
from headstart.values import Progress
from method_runs import make_loop, make_prunable, same, train, weights

TEXTS = [f"{text} {word}" for text in ("where is my parcel", "refund please", "password lost")
         for word in ("today", "please", "help", "still", "now", "again")]  # fmt: skip
LABELS = [name for name in ("delivery", "refund", "login") for _ in range(6)]


def at(step: int, steps: int = 10, **changes: Any) -> Context:
    return make_context(progress=Progress(step, steps, 0, 1), **changes)


def learn(model: Model, method: Method, steps: int, watch: Callable[[Model], None] = lambda model: None) -> None:
    """Plain gradient steps without dropout."""
    model.eval()
    for step in range(steps):
        model.zero_grad()
        loss_of(model)(make_batch(seed=step)).backward()
        watch(model)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
        method.after_step(model, at(step))


@pytest.mark.parametrize("kind", ["movement", "taylor"])
def test_importance_is_weight_times_gradient_summed_over_what_a_member_feeds(kind: str) -> None:
    plain, expected = make_prunable("text"), {}

    def watch(model: Model) -> None:
        """By hand, on a network without gates: -w g or |w g| over the columns of each head and neuron."""
        for place, block in enumerate(model.backbone.blocks):
            inner: Any = block.block  # type: ignore[union-attr]
            for name, layer, size in (("heads", inner.attn.proj, 4), ("neurons", inner.mlp.fc2, 1)):
                products = (layer.weight * layer.weight.grad).detach().numpy()
                members = products.shape[1] // size
                per = np.array([products[:, i * size : (i + 1) * size].sum() for i in range(members)])
                total = expected.setdefault((place, name), np.zeros(members))
                total += np.abs(per) if kind == "taylor" else -per

    late, twin = Prune(kind=kind, begin=1, end=1), make_prunable("text")
    late.adapt(twin, make_context())
    learn(twin, late, 4)
    learn(plain, Method(), 4, watch)
    assert len(late.structures_) == len(expected) == 6
    for structure in late.structures_:
        key = (int(structure.path.split(".")[2]), structure.kind)
        assert np.allclose(structure.gate.score.numpy(), expected[key], atol=1e-6)
        assert np.abs(expected[key]).max() > 1e-4


def test_magnitude_is_the_length_of_everything_that_belongs_to_a_member() -> None:
    model = make_prunable("text")
    method = Prune(kind="magnitude")
    method.adapt(model, make_context())
    method.after_step(model, at(0))
    inner: Any = model.backbone.blocks[1].block  # type: ignore[union-attr]
    heads, neurons = (s for s in method.structures_ if s.path.split(".")[2] == "1")
    attention, outer = inner.attn.qkv.weight.detach(), inner.attn.proj.weight.detach()
    for head in range(4):
        rows = [16 * part + 4 * head + i for part in range(3) for i in range(4)]
        own = (*attention[rows].flatten(), *outer[:, 4 * head : 4 * head + 4].flatten())
        assert float(heads.gate.score[head]) == pytest.approx(sum(float(w) ** 2 for w in own) ** 0.5, rel=1e-5)
    for neuron in (0, 17, 63):
        own = (*inner.mlp.fc1.weight[neuron].detach(), *inner.mlp.fc2.weight[:, neuron].detach())
        assert float(neurons.gate.score[neuron]) == pytest.approx(sum(float(w) ** 2 for w in own) ** 0.5, rel=1e-5)


def test_magnitude_of_a_channel_counts_its_three_convolutions() -> None:
    model = make_prunable("image")
    structure = find(model.backbone)[0]
    block: Any = model.backbone.blocks[0]
    parts = (block.conv_pw.weight[3], block.conv_dw.weight[3], block.conv_pwl.weight[:, 3])
    expected = sum(float(part.detach().square().sum()) for part in parts) ** 0.5
    assert float(structure.magnitudes()[3]) == pytest.approx(expected, rel=1e-5)


def test_the_schedule_is_the_cubic_and_stands_still_after_its_end() -> None:
    model, method = make_prunable("text"), Prune(heads=0.5, neurons=0.5, begin=0.2, end=0.7)
    method.adapt(model, make_context())
    closed, masks = [], []

    def count() -> None:
        gates = [s.gate for s in method.structures_ if s.kind == "neurons"]
        closed.append(int(sum((gate.mask == 0).sum() for gate in gates)))
        masks.append([gate.mask.clone() for gate in gates])
        assert sum(int((gate.goal == 0).sum()) for gate in gates) == 96

    for step in range(10):
        loss_of(model)(make_batch(seed=step)).backward()
        method.after_step(model, at(step))
        count()
    shares = [0.5 * (1 - (1 - min(1, max(0, (t / 10 - 0.2) / 0.5))) ** 3) for t in range(1, 11)]
    assert closed == [round(192 * share) for share in shares]
    assert closed[1] == 0 and closed[6] == closed[9] == 96
    for late in masks[7:]:
        assert all(torch.equal(a, b) for a, b in zip(masks[6], late, strict=True))


def test_equal_begin_and_end_mask_at_once() -> None:
    method = Prune(neurons=0.5, begin=0.4, end=0.4)
    assert [method._share(0.5, done) for done in (0.1, 0.3, 0.4, 0.9)] == [0, 0, 0.5, 0.5]


def test_the_least_important_go_but_never_all_of_a_block() -> None:
    first, second = choose([torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.1, 0.2, 9.0])], 3)
    assert first.tolist() == [1, 0, 1] and second.tolist() == [0, 0, 1]
    first, second = choose([torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.1, 0.2, 0.3])], 99)
    assert first.tolist() == [1, 0, 0] and second.tolist() == [0, 0, 1]


def test_passes_with_gradients_use_the_mask_and_passes_without_the_goal() -> None:
    model, batch = make_prunable("text").eval(), make_batch()
    plain = model(batch)[1].detach()
    method = Prune()
    method.adapt(model, make_context())
    for structure in method.structures_:
        structure.gate.goal[1:] = 0
    assert torch.allclose(model(batch)[1], plain, atol=1e-6)
    with torch.no_grad():
        assert not torch.allclose(model(batch)[1], plain, atol=1e-3)


def hf_bert(folder: Path) -> Any:
    return load_backbone(BackboneSpec(ref=f"file:{folder}"), "text")


def timm_net(name: str, size: int | None = None, **options: Any) -> Any:
    return _timm_net.build(name, None, BackboneSpec(pretrained=False, image_size=size), {}, 0, name, options)


NETWORKS: dict[str, Callable[[Path], Any]] = {
    "bert": hf_bert,
    "vit": lambda folder: timm_net("vit_tiny_patch16_224", 32, depth=2),
    "efficientnet_lite": lambda folder: timm_net("efficientnet_lite0"),
    "squeezes": lambda folder: timm_net("mobilenetv3_small_050"),
    "resnet": lambda folder: timm_net("resnet18"),
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_cut_network_answers_as_the_masked_one_and_is_as_small_as_promised(name: str, tiny_bert: Path) -> None:
    backbone = NETWORKS[name](tiny_bert)
    model = Model(backbone, nn.Linear(backbone.width, 3)).eval()
    method = Prune(heads=0.5 if name in ("bert", "vit") else None, neurons=0.6)
    before = sum(p.numel() for block in backbone.blocks for p in block.parameters())
    method.adapt(model, make_context())
    draws = torch.Generator().manual_seed(1)
    for structure in method.structures_:
        structure.gate.score.copy_(torch.randn(structure.number, generator=draws))
    method.after_step(model, at(0))
    row = backbone.example()
    row = row.replace(shift=torch.randn(backbone.zero_shift(row).shape, generator=draws))
    with torch.no_grad():
        masked = model(row)[1]
        method.finish(model, make_context())
        assert torch.allclose(model(row)[1], masked, atol=1e-5)
    assert not any("headstart" in key for key in model.state_dict())
    after = sum(p.numel() for block in backbone.blocks for p in block.parameters())
    if name == "bert":
        # A head of width 16: queries, keys and values with biases, and columns of the output. A neuron: its row, bias
        # and column. Half of 4 heads, and 60 % of 128 neurons.
        assert before - after == 2 * (3 * 16 * 33 + 16 * 32) + round(0.6 * 128) * (32 + 1 + 32)
    assert after < 0.75 * before
    loss = model(row)[1].sum()
    loss.backward()
    assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.parametrize("family", ["DistilBert", "Roberta", "MPNet", "Albert", "ViT"])
def test_families_of_transformers(family: str) -> None:
    """What is found in each, by the trial cut that decides."""
    import transformers

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    special = {
        "DistilBert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 40},
        "ViT": {**small, "image_size": 32, "patch_size": 16},
        "Albert": {**small, "embedding_size": 32, "vocab_size": 40},
    }
    options = special.get(family, {**small, "vocab_size": 40})
    network = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**options)).eval()
    model = make_model("image" if family == "ViT" else "text")
    backbone: Any = model.backbone
    backbone.network = network

    class Wrapped(type(backbone)):  # type: ignore[misc]
        @property
        def blocks(self) -> list[nn.Module]:
            return list(next(m for m in self.network.modules() if isinstance(m, nn.ModuleList)))

        def features(self, batch: Any) -> Any:
            from headstart.values import Features

            if family == "ViT":
                tokens = self.network(pixel_values=batch.inputs["pixels"] + batch.shift).last_hidden_state
                return Features(tokens[:, 0], tokens)
            words = self.network.get_input_embeddings()
            handle = words.register_forward_hook(lambda m, a, out: out + batch.shift)
            tokens = self.network(**batch.inputs).last_hidden_state
            handle.remove()
            return Features(tokens[:, 0], tokens)

        def zero_shift(self, batch: Any) -> Tensor:
            if family == "ViT":
                return torch.zeros(1, 3, 32, 32)
            return torch.zeros(1, 4, network.get_input_embeddings().weight.shape[1])

    backbone.__class__ = Wrapped
    if family == "MPNet":
        with pytest.raises(MethodError, match=r"no heads can be cut .* \(MPNetModel\): leave prune:heads out"):
            Prune(heads=0.5).adapt(model, make_context())
    method = Prune()
    method.adapt(model, make_context())
    kinds = {structure.kind for structure in method.structures_}
    assert kinds == ({"neurons"} if family == "MPNet" else {"heads", "neurons"})
    method.after_step(model, at(0))
    method.finish(model, make_context())
    assert all(read(ranges) for ranges in method.options()["kept"].values())


@pytest.mark.parametrize("others", [{}, {"ema": EMA(decay=0.5)}])
@pytest.mark.parametrize("kind", ["text", "image"])
def test_what_was_validated_is_what_is_left(kind: str, others: dict[str, Any]) -> None:
    """The best epoch may be any, before the end of the schedule too: its score is that of the cut network."""
    loop = make_loop([], kind, like="prune", methods={"prune": Prune(neurons=0.7, begin=0.0, end=1.0), **others})
    result = train(loop)
    assert loop._validate(result.model) == result.best
    assert len(result.history) == 3


def test_a_soup_is_made_before_the_cut_in_either_order() -> None:
    ends = []
    for order in (("soup", "prune"), ("prune", "soup")):
        made = {"soup": Soup(k=3), "prune": Prune(begin=0.1, end=0.9)}
        ends.append(weights(train(make_loop([], "text", like="prune", methods={name: made[name] for name in order}))))
    assert same(*ends)


def test_removing_nothing_of_one_kind_leaves_it() -> None:
    model = make_prunable("text")
    method = Prune(heads=0, neurons=0.25)
    method.adapt(model, make_context())
    assert {structure.kind for structure in method.structures_} == {"neurons"}


def test_a_run_without_steps_cuts_nothing() -> None:
    model = make_prunable("text")
    before = sum(p.numel() for p in model.parameters())
    method = Prune()
    method.adapt(model, make_context())
    method.finish(model, make_context())
    assert sum(p.numel() for p in model.parameters()) == before


def test_backbones_and_neighbours_that_do_not_fit_are_refused() -> None:
    with pytest.raises(MethodError, match=r"no heads or neurons can be cut out of 'tiny' \(TextNetwork\)"):
        Prune().adapt(make_model(), make_context())
    with pytest.raises(MethodError, match=r"no heads can be cut out of 'tiny' \(ImageNetwork\): leave prune:heads out"):
        Prune(heads=0.5).adapt(make_prunable("image"), make_context())
    with pytest.raises(MethodError, match="'lora' and 'prune' both want to change the same layer"):
        train(make_loop([], "text", like="prune", methods={"lora": LoRA(r=2), "prune": Prune()}))


def test_a_cut_that_changes_the_answer_fails_its_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_prunable("text")
    method = Prune()
    method.adapt(model, make_context())
    monkeypatch.setattr(module, "cut", lambda *_: 0.5)
    with pytest.raises(ProofError, match=r"changed the backbone's answer by 5.0e-01"):
        method.finish(model, make_context())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"heads": 1.0}, "prune:heads to be a number of at least 0 and at most 0.99"),
        ({"neurons": -0.1}, "prune:neurons to be a number of at least 0"),
        ({"neurons": True}, "received True"),
        ({"heads": 0, "neurons": 0}, "remove nothing"),
        ({"kind": "move"}, "'taylor' or 'movement' or 'magnitude'"),
        ({"begin": 1.5}, "prune:begin to be a number of at least 0 and at most 1"),
        ({"begin": 0.5, "end": 0.4}, "prune:end to be a number of at least 0.5"),
        ({"kept": ["a"]}, "a mapping from layers to their members"),
        ({"kept": {"a": "3-1"}}, "members in ascending order, received '3-1'"),
        ({"kept": {"a": "x"}}, "prune:kept of 'a'"),
        ({"kept": {"a": [1]}}, "received [1]"),
    ],
)
def test_a_bad_option_is_refused_with_the_way_out(options: dict[str, Any], says: str) -> None:
    with pytest.raises(MethodError) as caught:
        Prune(**options)
    assert says in str(caught.value)


def test_kept_members_of_another_backbone_are_refused() -> None:
    for kept in ({"network.other": "0"}, {"network.layers.0.block.attn.proj": "0-4"}):
        with pytest.raises(MethodError, match="that this backbone does not have"):
            Prune(kept=kept).adapt(make_prunable("text"), make_context())


def test_members_are_written_as_ranges() -> None:
    assert written([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert read("0-2,5,7-8") == [0, 1, 2, 5, 7, 8]


def test_a_bundle_holds_the_smaller_network(tiny_bert: Path, tmp_path: Path) -> None:
    methods = [Prune(heads=0.5, neurons=0.5)]
    made = hs.fit(TEXTS, LABELS, backbone=f"file:{tiny_bert}", methods=methods, epochs=2)
    made.save(tmp_path / "model")
    loaded = hs.load(tmp_path / "model")
    assert np.array_equal(loaded.outputs(TEXTS), made.outputs(TEXTS))
    shapes = {name: p.shape for name, p in loaded.model.named_parameters()}
    assert shapes == {name: p.shape for name, p in made.model.named_parameters()}
    inner = [p.shape[0] for name, p in loaded.model.named_parameters() if name.endswith("intermediate.dense.weight")]
    assert sum(inner) == 64
    loaded.save(tmp_path / "again")
    assert np.array_equal(hs.load(tmp_path / "again").outputs(TEXTS), made.outputs(TEXTS))


def test_stages_after_a_cut_see_the_smaller_network(tiny_bert: Path, tmp_path: Path) -> None:
    """Twice pruned with a frozen backbone between two probes: nothing that was computed before the cut is used."""
    probe = {"methods": ["freeze:probe"], "training": {"optimizer": "lbfgs"}}
    trained = {"methods": ["freeze:probe", "prune:kind=magnitude"], "training": {"epochs": 1}}
    stages = [{"name": f"{i}", **stage} for i, stage in enumerate((probe, trained, trained, probe))]
    spec = {"stages": stages, "keep": "last"}
    run = prepare(make_spec(spec=spec, backbone__ref=f"file:{tiny_bert}"), {"inputs": TEXTS, "labels": LABELS})
    made = execute(run, tmp_path / "model")
    assert not run.stages.untouched
    assert np.array_equal(hs.load(tmp_path / "model").outputs(TEXTS), made.outputs(TEXTS))
    inner = [p.shape[0] for name, p in made.model.named_parameters() if name.endswith("intermediate.dense.weight")]
    assert sum(inner) == 32
