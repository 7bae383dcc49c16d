from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from method_helpers import CLASSES, ImageModality, TextBackbone, make_batch, make_context, make_model
from torch import Tensor, nn

from headstart.encoded import Encoded
from headstart.errors import MethodError
from headstart.methods import _likeness
from headstart.methods._told import key
from headstart.methods._watch import attention, states, watch
from headstart.methods.distil import Distil, matched, write_outputs
from headstart.model import Model
from headstart.protocols import Context, Task
from headstart.tasks.classification import Classification
from headstart.tasks.multilabel import Multilabel
from headstart.tasks.regression import Regression
from headstart.values import Batch, Features, View
from method_runs import Tensors

LABELS = ["a", "b", "c"]


def teacher(kind: str = "text", seed: int = 1, labels: list[str] | None = None) -> Any:
    task = Classification.fit(labels or LABELS)
    return SimpleNamespace(model=make_model(kind, seed=seed), task=task, modality=None)


def context(kind: str = "text", bundle: Any = None, task: Task | None = None, **changes: Any) -> Context:
    made = teacher(kind) if bundle is None else bundle
    return make_context(kind, task=task or Classification.fit(LABELS), bundle=lambda folder: made, **changes)


def run(method: Distil, ctx: Context, model: Model, batch: Batch) -> dict[str, Tensor]:
    """The penalties of one pass."""
    method.adapt(model, ctx)
    return method.penalty(seen(model, batch), ctx)


def seen(model: Model, batch: Batch) -> View:
    features, outputs = model(batch)
    return View(batch, features, outputs, outputs.sum(1), model)


def weighted_mean(values: list[float], batch: Batch) -> float:
    weights = batch.weight.tolist()
    return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)


def said(model: Model, batch: Batch) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model.eval()(batch)[1].double())


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return np.asarray(powers / powers.sum())


@pytest.mark.parametrize("kind", ["text", "image"])
def test_logits_are_the_softened_divergence_times_the_squared_temperature(kind: str) -> None:
    batch, big = make_batch(kind), teacher(kind)
    mine, theirs = said(make_model(kind), batch), said(big.model, batch)
    values = []
    for row in range(len(batch)):
        p, q = softmax(theirs[row] / 3), softmax(mine[row] / 3)
        values.append(9 * sum(p[k] * math.log(p[k] / q[k]) for k in range(CLASSES)))
    found = run(Distil(teacher="t", logits=0.7, temperature=3.0), context(kind, big), make_model(kind).eval(), batch)
    assert float(found["distil"].detach()) == pytest.approx(0.7 * weighted_mean(values, batch), rel=1e-3)


def test_several_labels_are_two_way_answers_each() -> None:
    task = Multilabel.fit([["a"], ["b"]])
    g = torch.Generator().manual_seed(0)
    mine, theirs = torch.randn(4, 2, generator=g), torch.randn(4, 2, generator=g)
    expected = []
    for s, t in zip(mine.double().tolist(), theirs.double().tolist(), strict=True):
        total = 0.0
        for a, b in zip(s, t, strict=True):
            q, p = 1 / (1 + math.exp(-a / 2)), 1 / (1 + math.exp(-b / 2))
            total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        expected.append(4 * total / 2)
    assert _likeness.outputs(mine, theirs, 2.0, task).tolist() == pytest.approx(expected, rel=1e-4)


def test_a_regression_takes_the_teachers_values_in_their_own_units() -> None:
    batch = make_batch()
    mine, theirs = Regression.fit([0.0, 10.0, 20.0]), Regression.fit([-1.0, 1.0])
    big = SimpleNamespace(model=make_model(seed=1), task=theirs, modality=None)
    student = make_model()
    for model in (student, big.model):
        model.head = nn.Linear(16, 1)
    now, then = said(student, batch)[:, 0], said(big.model, batch)[:, 0]
    wanted = [(s - (t * theirs.std[0] + theirs.mean[0] - mine.mean[0]) / mine.std[0]) ** 2
              for s, t in zip(now, then, strict=True)]  # fmt: skip
    found = run(Distil(teacher="t"), context(bundle=big, task=mine), student, batch)
    assert float(found["distil"].detach()) == pytest.approx(weighted_mean(wanted, batch), rel=1e-4)


@pytest.mark.parametrize("kind", ["text", "image"])
@pytest.mark.parametrize("of", ["pooled", "tokens"])
def test_hidden_is_the_distance_of_directions_of_matched_blocks(kind: str, of: str) -> None:
    batch, big, student = make_batch(kind), teacher(kind), make_model(kind).eval()
    # A student of two blocks: the first is matched with none of the teacher's before its end, the second with its last.
    student.backbone.network.layers = student.backbone.network.layers[:2] if kind == "text" else (
        nn.ModuleList([student.backbone.network.layers[0], nn.Sequential(*student.backbone.network.layers[1:])])
    )  # fmt: skip
    pairs = matched(2, 3)
    assert pairs == [(0, 0), (1, 2)]
    stop = [watch(student.backbone), watch(big.model.backbone)]
    with torch.no_grad():
        ours, theirs = student.backbone(batch), big.model.eval().backbone(batch)
    mask = batch.inputs["attention_mask"].numpy() if kind == "text" else np.ones((len(batch), 64))
    values = []
    for row in range(len(batch)):
        total = 0.0
        for a, b in pairs:
            s, t = (np.asarray(states(f)[n][row].double()) for f, n in ((ours, a), (theirs, b)))
            s, t = (v if kind == "text" else v.reshape(len(v), -1).T for v in (s, t))
            s, t = s[mask[row] == 1], t[mask[row] == 1]
            if of == "pooled":
                s, t = s.mean(0)[None], t.mean(0)[None]
            gaps = [np.sum((x / np.linalg.norm(x) - y / np.linalg.norm(y)) ** 2) for x, y in zip(s, t, strict=True)]
            total += float(np.mean(gaps))
        values.append(total / 2)
    for each in stop:
        each()
    found = run(Distil(teacher="t", logits=0.0, hidden=2.0, of=of), context(kind, big), student, batch)
    assert float(found["distil_hidden"].detach()) == pytest.approx(2 * weighted_mean(values, batch), rel=1e-4)


def test_other_widths_are_projected_inside_the_head_until_the_end() -> None:
    batch, big, student = make_batch("image"), teacher("image"), make_model("image")
    small = student.backbone.network
    small.layers = nn.ModuleList([nn.Sequential(*small.layers)])
    big.model.backbone.network.layers = nn.ModuleList([*big.model.backbone.network.layers[:2]])
    big.model.backbone.network.top = nn.BatchNorm2d(12)
    big.model.head = nn.Linear(12, CLASSES)
    method, ctx = Distil(teacher="t", hidden=1.0), context("image", big)
    names = set(student.state_dict())
    method.adapt(student, ctx)
    assert student.head.distil["0"].weight.shape == (12, 16)
    method.penalty(seen(student, batch), ctx)["distil_hidden"].backward()
    assert float(student.head.distil["0"].weight.grad.abs().sum()) > 0
    method.finish(student, ctx)
    assert set(student.state_dict()) == names and not method.remains()
    assert not student.backbone._forward_hooks


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def test_relations_are_those_of_distances_and_angles() -> None:
    g = torch.Generator().manual_seed(0)
    mine, theirs = torch.randn(5, 4, generator=g), 3 * torch.randn(5, 7, generator=g)
    s, t = np.asarray(mine.double()), np.asarray(theirs.double())
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    means = [np.mean([np.linalg.norm(x[i] - x[j]) for i, j in pairs]) for x in (s, t)]
    near = [huber(np.linalg.norm(s[i] - s[j]) / means[0] - np.linalg.norm(t[i] - t[j]) / means[1]) for i, j in pairs]
    angles = []
    for i in range(5):
        for j in range(5):
            for k in range(5):
                if len({i, j, k}) == 3:
                    cosines = []
                    for x in (s, t):
                        a, b = x[i] - x[j], x[k] - x[j]
                        cosines.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
                    angles.append(huber(cosines[0] - cosines[1]))
    expected = float(np.mean(near) + 2 * np.mean(angles))
    assert float(_likeness.relations(mine, theirs)) == pytest.approx(expected, rel=1e-4)
    for rows in (1, 2):  # too few for angles, or for anything
        few = mine[:rows].clone().requires_grad_()
        _likeness.relations(few, theirs[:rows]).backward()
        assert few.grad is not None and bool(torch.isfinite(few.grad).all())


def bert(layers: int, seed: int, heads: int = 2) -> Model:
    """A real transformer behind the tests' backbone."""
    from transformers import BertConfig, BertModel

    class Network(TextBackbone):
        def features(self, batch: Batch) -> Features:
            mask = batch.inputs["attention_mask"]
            out = self.network(input_ids=batch.inputs["input_ids"], attention_mask=mask).last_hidden_state
            return Features(out[:, 0], out, mask)

        @property
        def blocks(self) -> list[nn.Module]:  # type: ignore[override]
            return list(self.network.encoder.layer)

    torch.manual_seed(seed)
    backbone = Network()
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=16,
    )  # fmt: skip
    backbone.network = BertModel(config)
    return Model(backbone, nn.Linear(16, CLASSES))


def test_attention_is_the_divergence_of_the_maps_and_the_network_is_left_as_it_was() -> None:
    batch, big, student = make_batch(), SimpleNamespace(model=bert(4, 1), task=None, modality=None), bert(2, 0)
    config = student.backbone.network.config
    before = config._attn_implementation
    with torch.no_grad():
        ours, theirs = (attention(model.eval().backbone, batch) for model in (student, big.model))
    values = []
    for row in range(len(batch)):
        length = int(batch.inputs["attention_mask"][row].sum())
        total = [
            sum(float(t) * math.log(float(t) / float(s)) for s, t in zip(a[:length], b[:length], strict=True))
            for here, there in ((0, 1), (1, 3))
            for head in range(2)
            for a, b in zip(ours[here][row, head, :length], theirs[there][row, head, :length], strict=True)
        ]
        values.append(float(np.mean(total)))
    method, ctx = Distil(teacher="t", logits=0.0, attention=1.5), context(bundle=big)
    student.train()
    found = run(method, ctx, student, batch)["distil_attention"]
    assert float(found.detach()) == pytest.approx(1.5 * weighted_mean(values, batch), rel=1e-3)
    found.backward()
    assert float(student.backbone.network.encoder.layer[0].attention.self.query.weight.grad.abs().sum()) > 0
    assert config._attn_implementation == before


def test_a_network_without_maps_and_another_number_of_heads_are_refused() -> None:
    batch = make_batch()
    with pytest.raises(MethodError, match="'tiny' shows no attention maps"):
        run(Distil(teacher="t", logits=0.0, attention=1.0), context(), make_model(), batch)
    big = SimpleNamespace(model=bert(2, 1, heads=4), task=None, modality=None)
    with pytest.raises(MethodError, match="the student has 2 attention heads a block and the teacher 4"):
        run(Distil(teacher="t", logits=0.0, attention=1.0), context(bundle=big), bert(2, 0), batch)


@pytest.mark.parametrize("kind", ["text", "image"])
def test_a_teacher_equal_to_the_student_costs_nothing(kind: str) -> None:
    found = run(
        Distil(teacher="t", hidden=1.0, relations=1.0), context(kind, teacher(kind, seed=0)), make_model(kind).eval(),
        make_batch(kind),
    )  # fmt: skip
    assert {name: float(value.detach()) for name, value in found.items()} == pytest.approx(
        {"distil": 0, "distil_hidden": 0, "distil_relations": 0}, abs=1e-6
    )


def test_the_gradient_reaches_the_student_and_never_the_teacher() -> None:
    big, student = teacher(), make_model()
    sum(
        run(Distil(teacher="t", hidden=1.0, relations=1.0), context(bundle=big), student, make_batch()).values()
    ).backward()
    assert float(student.backbone.network.embedding.weight.grad.abs().sum()) > 0
    assert not any(p.requires_grad or p.grad is not None for p in big.model.parameters())
    assert not big.model.training


def test_labels_are_matched_by_name_and_missing_ones_refused() -> None:
    batch, big = make_batch(), teacher()
    big.task.labels = ("c", "a", "b")
    plain = teacher()
    plain.model.load_state_dict(big.model.state_dict())
    with torch.no_grad():
        for part in (plain.model.head.weight, plain.model.head.bias):
            part.copy_(part[[1, 2, 0]].clone())
    a, b = (run(Distil(teacher="t"), context(bundle=t), make_model().eval(), batch) for t in (big, plain))
    assert float(a["distil"].detach()) == pytest.approx(float(b["distil"].detach()), rel=1e-5)
    with pytest.raises(MethodError, match="does not know the labels 'c'"):
        run(Distil(teacher="t"), context(bundle=teacher(labels=["a", "b", "d"])), make_model(), batch)
    other = SimpleNamespace(model=make_model(), task=Regression.fit([0.0, 1.0]), modality=None)
    with pytest.raises(MethodError, match="the run is classification and its teacher was made for regression"):
        run(Distil(teacher="t"), context(bundle=other), make_model(), batch)
    assert set(run(Distil(teacher="t", logits=0, relations=1), context(bundle=other), make_model(), batch)) == {
        "distil_relations"
    }


def rows(count: int = 12, raw: Any = None) -> Encoded:
    batches = [make_batch(rows=6, seed=seed) for seed in range(count // 6)]
    inputs = {name: torch.cat([b.inputs[name] for b in batches]) for name in batches[0].inputs}
    return Encoded(Tensors(inputs), None, torch.ones(count), torch.zeros(count, dtype=torch.int64), raw)


def test_the_teacher_is_asked_once_for_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    big, ready = teacher(), rows()
    asked = []
    forward = big.model.forward
    monkeypatch.setattr(big.model, "forward", lambda batch: (asked.append(len(batch)), forward(batch))[1])
    method, ctx, student = Distil(teacher="t", hidden=1.0), context(bundle=big, train_rows=ready), make_model().eval()
    method.adapt(student, ctx)
    batch = ready.batch([7, 2, 11])
    first = method.penalty(seen(student, batch), ctx)
    method.penalty(seen(student, ready.batch([1, 0])), ctx)
    assert asked == [12]
    again = run(Distil(teacher="t", hidden=1.0), context(bundle=big), make_model().eval(), batch)
    assert {k: float(v.detach()) for k, v in first.items()} == pytest.approx(
        {k: float(v.detach()) for k, v in again.items()}
    )


def test_where_batches_are_changed_the_teacher_sees_the_changed_rows() -> None:
    ready = rows()
    plain = ready.batch([3, 4, 5])
    changed = plain.replace(inputs={**plain.inputs, "input_ids": plain.inputs["input_ids"].roll(1, 1)})
    found = [
        float(
            run(Distil(teacher="t"), context(train_rows=ready, altered=altered), make_model().eval(), changed)[
                "distil"
            ].detach()
        )
        for altered in (True, False)
    ]
    assert found[0] != pytest.approx(found[1])
    expected = run(Distil(teacher="t"), context(), make_model().eval(), changed)["distil"]
    assert found[0] == pytest.approx(float(expected.detach()))


class Reader:
    """A modality that turns raw rows into the inputs of a batch."""

    def prepare(self, values: Any, backbone: Any) -> Tensors:
        return Tensors({name: torch.cat([v[name][None] for v in values]) for name in values[0]})


def test_a_teacher_that_reads_otherwise_gets_the_raw_rows_or_is_refused() -> None:
    ready = rows()
    raw = [{name: value[i].clone() for name, value in ready.prepared.inputs.items()} for i in range(12)]  # type: ignore[attr-defined]
    for row in raw:
        row["input_ids"] = (row["input_ids"] + 1) % 40
    big = teacher()
    big.model.backbone.preprocessing, big.modality = {"max_length": 99}, Reader()
    student, picked = make_model().eval(), [8, 1, 5]
    found = run(Distil(teacher="t"), context(bundle=big, train_rows=rows(raw=raw)), student, ready.batch(picked))
    theirs = said(big.model, Batch(Reader().prepare([raw[i] for i in picked], None).inputs, None, torch.ones(3),
                                   torch.zeros(3), torch.arange(3)))  # fmt: skip
    mine = said(student, ready.batch(picked))
    values = []
    for s, t in zip(mine, theirs, strict=True):
        p, q = softmax(t / 2), softmax(s / 2)
        values.append(4 * float((p * np.log(p / q)).sum()))
    assert float(found["distil"].detach()) == pytest.approx(np.mean(values), rel=1e-4)
    with pytest.raises(MethodError, match="the rows as they were read are not there"):
        run(Distil(teacher="t"), context(bundle=big, train_rows=ready), make_model(), ready.batch([0]))
    with pytest.raises(MethodError, match="another method changes the batches"):
        Distil(teacher="t").adapt(make_model(), context(bundle=big, train_rows=ready, altered=True))
    with pytest.raises(MethodError, match="distil:of=tokens or distil:attention is set"):
        Distil(teacher="t", hidden=1.0, of="tokens").adapt(make_model(), context(bundle=big, train_rows=ready))


def test_a_file_of_outputs_is_a_teacher_for_the_rows_it_was_made_from(tmp_path: Path) -> None:
    texts = [f"row {n}" for n in range(12)]
    said_ = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    backwards = list(reversed(range(12)))
    path = str(write_outputs(tmp_path / "o.safetensors", [texts[i] for i in backwards], said_[backwards][:, [2, 0, 1]],
                             ["c", "a", "b"]))  # fmt: skip
    ready, student = rows(raw=texts), make_model().eval()
    batch = ready.batch([4, 9])
    mine = said(student, batch)
    values = []
    for s, t in zip(mine, np.asarray(said_[[4, 9]].double()), strict=True):
        p, q = softmax(t / 2), softmax(s / 2)
        values.append(4 * float((p * np.log(p / q)).sum()))
    found = run(Distil(teacher=path), context(train_rows=ready), student, batch)
    assert float(found["distil"].detach()) == pytest.approx(np.mean(values), rel=1e-4)
    with pytest.raises(MethodError, match=r"holds no outputs for 1 of 12 rows, the first being row 3"):
        run(Distil(teacher=path), context(train_rows=rows(raw=[*texts[:3], "new", *texts[4:]])), make_model(), batch)
    with pytest.raises(MethodError, match="holds outputs alone"):
        run(Distil(teacher=path, hidden=1.0), context(train_rows=ready), make_model(), batch)
    with pytest.raises(MethodError, match="another method changes the batches"):
        run(Distil(teacher=path), context(train_rows=ready, altered=True), make_model(), batch)
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(MethodError, match="is not a file of teacher outputs"):
        run(Distil(teacher=str(tmp_path / "bad.safetensors")), context(train_rows=ready), make_model(), batch)
    with pytest.raises(MethodError, match="expected outputs of 2 rows by 3 labels"):
        write_outputs(tmp_path / "o.safetensors", ["a", "b"], said_, ["a", "b", "c"])
    with pytest.raises(MethodError, match=r"ends in \.safetensors"):
        write_outputs(tmp_path / "o.npy", texts, said_, ["a", "b", "c"])


def test_pictures_are_found_by_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"one")
    assert key(tmp_path / "a.png") == key(b"one") == key({"bytes": b"one", "path": None})
    assert key({"path": str(tmp_path / "a.png")}) == key(b"one") != key("a.png")
    assert key(np.zeros((2, 3), np.uint8)) != key(np.zeros((3, 2), np.uint8))


def test_rows_without_labels_join_every_micro_batch() -> None:
    ready, free = rows(), rows(18)
    student, batch = make_model().eval(), ready.batch([0, 1, 2])
    ctx = context(train_rows=ready, unlabelled=free)
    found = run(Distil(teacher="t", unlabelled=2), ctx, student, batch)
    draws = torch.randint(18, (12, 2), generator=torch.Generator().manual_seed(0))[[0, 1, 2]].flatten().tolist()
    parts = [
        float(run(Distil(teacher="t"), context(), student, rows_of.batch(which))["distil"].detach())
        for rows_of, which in ((ready, [0, 1, 2]), (free, draws))
    ]
    assert float(found["distil"].detach()) == pytest.approx((parts[0] + 2 * parts[1]) / 3, rel=1e-5)
    alone = run(Distil(teacher="t", unlabelled=0), ctx, make_model().eval(), batch)
    assert float(alone["distil"].detach()) == pytest.approx(parts[0], rel=1e-5)


def test_rows_without_labels_come_by_length() -> None:
    """As many at a time as the batch has, all that were drawn, the short ones together."""
    ready, free = rows(), rows(18)
    free.prepared.lengths = np.arange(18)[::-1].astype(np.int32)
    found = [
        part.row.tolist()
        for part in Distil(teacher="t", unlabelled=4)._more(ready.batch([0, 1, 2]), context(unlabelled=free))
    ]
    draws = torch.randint(18, (3, 4), generator=torch.Generator().manual_seed(0))
    assert [len(part) for part in found] == [3] * 4
    assert [row for part in found for row in part] == sorted(draws.flatten().tolist(), reverse=True)


def test_a_run_goes_on_with_the_same_teacher_only() -> None:
    first, other = Distil(teacher="t"), Distil(teacher="t")
    first.adapt(make_model(), context())
    other.adapt(make_model(), context(bundle=teacher(seed=2)))
    with pytest.raises(MethodError, match="not the one that this run was begun with"):
        other.load_state(json.loads(json.dumps(first.state())), make_model())
    first.load_state(first.state(), make_model())
    assert json.loads(first.artefacts()["teacher.json"])["folder"] == "t"


def test_a_teacher_of_another_modality_is_refused() -> None:
    with pytest.raises(MethodError, match="the teacher reads image and the rows are text"):
        Distil(teacher="t").adapt(make_model(), context(bundle=teacher("image")))
    assert ImageModality.name == "image"


def test_a_run_that_cannot_load_a_teacher_says_so() -> None:
    with pytest.raises(MethodError, match="can load its teacher"):
        Distil(teacher="t").adapt(make_model(), make_context())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "expected distil:teacher to be the folder of a bundle"),
        ({"teacher": "t", "logits": 0}, "every term is 0"),
        ({"teacher": "t", "hidden": -1}, "expected distil:hidden to be a number of at least 0"),
        ({"teacher": "t", "temperature": 0}, "expected distil:temperature to be a number above 0"),
        ({"teacher": "t", "of": "token"}, "did you mean 'tokens'"),
        ({"teacher": "t", "unlabelled": 0.5}, "expected distil:unlabelled to be a whole number"),
    ],
)
def test_a_bad_option_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(MethodError, match=says):
        Distil(**options)


def test_a_student_of_half_the_blocks_from_a_saved_teacher(
    tiny_bert: Path, tickets: dict[str, Path], tmp_path: Path
) -> None:
    import headstart as hs

    def fit(name: str, **more: Any) -> Any:
        return hs.fit(
            str(tickets["train"]), test=str(tickets["test"]), text="text", label="intent",
            backbone=f"file:{tiny_bert}", epochs=2, out=tmp_path / name, **more,
        )  # fmt: skip

    fit("big", methods=[])
    options = f"distil:teacher={json.dumps(str(tmp_path / 'big'))},hidden=1,relations=1,attention=1,of=tokens"
    fit("small", methods=[options], sets=["backbone.layers=1"])
    made = hs.load(tmp_path / "small")  # proves itself
    assert len(made.model.backbone.blocks) == 1 and made.record["surgery"] == []
    assert made.predict(["where is my parcel"])[0] in ("delivery", "refund", "login")
    said = json.loads(made.files["teacher.json"])
    assert said["lineage"]["id"] == hs.load(tmp_path / "big").record["lineage"]["id"]
    # The student is a bundle like any other, and can itself be a teacher.
    again = f"distil:teacher={json.dumps(str(tmp_path / 'small'))}"
    assert fit("next", methods=[again], unlabelled=str(tickets["test"])).report is not None
