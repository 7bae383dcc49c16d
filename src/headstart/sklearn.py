"""A thin scikit-learn estimator over `fit`: works in pipelines, `cross_val_score` and `GridSearchCV`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

if TYPE_CHECKING:
    from sklearn.utils import Tags


class TransferClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Adapt a pretrained backbone to labelled texts or pictures.

    X: a sequence of texts, of paths of pictures or sounds, or an array of pictures (n,H,W) or (n,H,W,C) uint8. y: (n,)
    class labels. The parameters are those of `headstart.fit`; with no `methods` the default recipe runs. After `fit`:
    `classes_` (K,), `bundle_` (the `Bundle`).
    """

    def __init__(
        self,
        backbone: str | None = None,
        methods: Sequence[Any] | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        seed: int = 0,
    ) -> None:
        self.backbone = backbone
        self.methods = methods
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.seed = seed

    def fit(self, X: Any, y: Any) -> TransferClassifier:
        """Adapt to rows X with labels y. Raises ValueError where scikit-learn's conventions ask for it."""
        from headstart.adapt import fit
        from headstart.errors import DataError

        rows = _rows(X)
        if y is None:
            raise ValueError("this TransferClassifier requires y to be passed, but the target y is None")
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        if len(rows) != len(y):
            raise ValueError(f"X has {len(rows)} rows and y has {len(y)}: they must be equal")
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"a classifier needs at least two classes; the data holds one class: {self.classes_}")
        try:
            self.bundle_ = fit(
                rows,
                [f"{code:06d}" for code in codes],
                task="classification",
                backbone=self.backbone,
                methods=self.methods,
                epochs=self.epochs,
                batch_size=self.batch_size,
                learning_rate=self.learning_rate,
                seed=self.seed,
            )
        except DataError as error:
            raise ValueError(str(error)) from error
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Calibrated probabilities, (n,K), columns as `classes_`."""
        check_is_fitted(self, "bundle_")
        return np.asarray(self.bundle_.scores(_rows(X)), dtype=np.float64)

    def predict(self, X: Any) -> np.ndarray:
        """Class labels, (n,)."""
        check_is_fitted(self, "bundle_")
        return np.asarray(self.classes_[self.predict_proba(X).argmax(1)])

    def __sklearn_tags__(self) -> Tags:
        tags: Tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.no_validation = True
        tags.non_deterministic = False
        return tags


def _rows(X: Any) -> list[Any]:
    """Texts or pictures as a list. Raises ValueError for what is neither."""
    if isinstance(X, str | bytes):
        raise ValueError(f"expected a sequence of rows, received one {type(X).__name__}: write [text]")
    if hasattr(X, "to_numpy"):
        X = X.to_numpy()
    if isinstance(X, np.ndarray) and X.ndim == 2 and X.shape[1] == 1:
        X = X[:, 0]
    if isinstance(X, np.ndarray) and X.ndim >= 3:
        return list(X)
    if isinstance(X, np.ndarray) and X.ndim == 2:
        raise ValueError(f"expected texts (n,) or pictures (n,H,W[,C]), received an array of shape {X.shape}")
    rows = list(X)
    if not rows:
        raise ValueError("expected at least one row, received 0")
    return rows
