"""The handwritten digits that scikit-learn ships, as folders of pictures."""

from __future__ import annotations

from pathlib import Path

from headstart.errors import DataError

_SCALE = 4
"""Every pixel of the 8x8 originals becomes a 4x4 square, so that the files can be looked at."""


def write_digits(folder: str | Path, per_class: int | None = None) -> Path:
    """Write `train/` and `test/` with one folder of PNG files (32x32, grey) for each digit; returns `folder`.

    Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998, UCI Machine Learning Repository), the 1,797
    rows of `sklearn.datasets.load_digits`. The data stand in the order in which they were collected, with the same
    writer's digits close together: the last fifth of each digit is the test part, so that few writers are in both.
    `per_class` keeps that many training pictures of each digit, evenly spaced, so that they come from many writers.
    Nothing is drawn at random.

    Raises DataError when `per_class` is below 1 or `folder` already holds something.
    """
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = Path(folder)
    if per_class is not None and per_class < 1:
        raise DataError(f"expected at least 1 picture of each digit, received per_class = {per_class}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"'{folder}' already holds something: name an empty folder, or delete it first")
    digits = load_digits()
    for digit in range(10):
        rows = np.flatnonzero(digits.target == digit)
        cut = len(rows) - len(rows) // 5
        spaced = np.linspace(0, cut - 1, min(per_class or cut, cut)).round().astype(int)
        for part, chosen in (("train", rows[spaced]), ("test", rows[cut:])):
            place = folder / part / str(digit)
            place.mkdir(parents=True, exist_ok=True)
            for row in chosen:
                # The originals count ink in sixteenths, 0 to 16.
                grey = np.rint(digits.images[row] * (255 / 16)).astype(np.uint8)
                picture = np.kron(grey, np.ones((_SCALE, _SCALE), dtype=np.uint8))
                Image.fromarray(picture).save(place / f"{row:04d}.png")
    return folder
