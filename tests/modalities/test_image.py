"""Pictures of every kind become the same pixels; damaged ones are named."""

from __future__ import annotations

import gc
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from headstart import catalog
from headstart.errors import DataError
from headstart.modalities import _pictures
from headstart.modalities import image as image_module
from headstart.modalities.image import ImageModality, PreparedImages, open_image

RNG = np.random.default_rng(0)


class Stub:
    """What the modality asks of a backbone of pictures."""

    modality = "image"
    ref = "stub"

    def __init__(self, size: int = 32, **settings: Any) -> None:
        base = {"image_size": size, "resize": size, "crop_mode": "center", "interpolation": "bicubic"}
        self.preprocessing = {**base, "mean": [0.5] * 3, "std": [0.5] * 3, **settings}


def prepare(values: Any, **settings: Any) -> PreparedImages:
    return ImageModality().prepare(values, Stub(**settings))  # type: ignore[arg-type]


def smooth(height: int, width: int) -> np.ndarray:
    """A picture whose neighbours are alike, so that resizing and JPEG change little."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * y / height, 255 * x / width, 128 + 0 * x], axis=2).astype(np.uint8)


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_it_is_found_by_name() -> None:
    assert catalog.find("modalities", "image") is ImageModality
    assert (ImageModality.name, ImageModality.continuous) == ("image", True)


def test_all_ways_of_giving_a_picture_agree(tmp_path: Path) -> None:
    array = smooth(40, 50)
    picture = Image.fromarray(array)
    path = tmp_path / "picture.png"
    picture.save(path)
    data = path.read_bytes()
    values = [str(path), path, data, bytearray(data), picture, array]
    values += [{"bytes": data, "path": None}, {"bytes": None, "path": str(path)}]
    taken = prepare(values).take(range(len(values)))["pixels"]
    assert taken.shape == (len(values), 3, 32, 32)
    assert taken.dtype == torch.float32 and taken.is_contiguous()
    assert taken.min() >= 0 and taken.max() <= 1
    for other in taken[1:]:
        assert torch.equal(other, taken[0])


def test_pixels_are_those_of_the_array() -> None:
    array = RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    taken = prepare([array]).take([0])["pixels"][0]
    assert torch.equal(taken, torch.from_numpy(array).permute(2, 0, 1).float() / 255)


@pytest.mark.parametrize("shape", [(300, 200), (200, 301), (224, 224), (97, 500), (256, 300)])
@pytest.mark.parametrize("way", ["bicubic", "bilinear"])
def test_resizing_and_cropping_are_those_of_the_evaluation(shape: tuple[int, int], way: str) -> None:
    """The oracle is timm's own evaluation transform."""
    transforms = pytest.importorskip("timm.data")
    array = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    oracle = transforms.create_transform(
        (3, 224, 224), is_training=False, interpolation=way, crop_pct=0.875, mean=(0, 0, 0), std=(1, 1, 1)
    )
    taken = prepare([array], size=224, resize=256, interpolation=way).take([0])["pixels"][0]
    torch.testing.assert_close(taken, oracle(Image.fromarray(array)), atol=1e-6, rtol=0)


def test_squashing_ignores_the_proportions() -> None:
    array = smooth(60, 100)
    taken = prepare([array], crop_mode="squash").take([0])["pixels"][0]
    wanted = np.asarray(Image.fromarray(array).resize((32, 32), Image.Resampling.BICUBIC))
    assert torch.equal(taken, torch.from_numpy(wanted.copy()).permute(2, 0, 1).float() / 255)


def test_a_border_is_filled_with_the_mean() -> None:
    taken = prepare([np.zeros((16, 32, 3), np.uint8)], crop_mode="border", mean=[1.0, 0.0, 0.2]).take([0])["pixels"][0]
    assert taken[:, 0, 0].tolist() == pytest.approx([1.0, 0.0, 0.2])
    assert taken[:, 16, 16].tolist() == [0, 0, 0]


def test_kinds_of_pixels() -> None:
    grey = np.full((32, 32), 200, np.uint8)
    level = 200 / 255
    sixteen = Image.fromarray(grey.astype(np.uint16) * 257)
    clear = Image.fromarray(np.dstack([np.zeros((32, 32, 3), np.uint8), np.full((32, 32), 0, np.uint8)]))
    half = Image.fromarray(np.dstack([np.zeros((32, 32, 3), np.uint8), np.full((32, 32), 55, np.uint8)]))
    palette = Image.fromarray(np.dstack([grey] * 3)).convert("P", palette=Image.Palette.ADAPTIVE)
    see_through = palette.copy()
    see_through.info["transparency"] = int(np.asarray(palette)[0, 0])
    cases: list[tuple[Any, float]] = [
        (grey, level),
        (grey[:, :, None], level),
        (Image.fromarray(grey).convert("LA"), level),
        (sixteen, level),
        (Image.fromarray(grey.astype(np.int32) * 257), level),
        (Image.fromarray(grey.astype(np.int32)), level),
        (Image.fromarray(np.full((32, 32), level, np.float32)), level),
        (encoded(sixteen), level),
        (palette, level),
        (Image.fromarray(grey > 100), 1.0),
        (Image.new("CMYK", (32, 32), (0, 0, 0, 55)), level),
        (encoded(Image.new("CMYK", (32, 32), (0, 0, 0, 55)), "JPEG"), level),
        (clear, 1.0),
        (encoded(clear), 1.0),
        (half, level),
        (encoded(see_through), 1.0),
        (encoded(Image.fromarray(grey), "GIF"), level),
        (encoded(Image.fromarray(grey), "WEBP", lossless=True), level),
    ]
    taken = prepare([value for value, _ in cases]).take(range(len(cases)))["pixels"]
    for place, (value, wanted) in enumerate(cases):
        found = taken[place]
        assert float(found.min()) == pytest.approx(wanted, abs=0.006), (place, getattr(value, "mode", type(value)))
        assert float(found.max()) == pytest.approx(wanted, abs=0.006)


def test_the_camera_s_rotation_is_undone() -> None:
    array = smooth(32, 32)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    turned = encoded(Image.fromarray(np.rot90(array).copy()), "PNG", exif=exif)
    taken = prepare([turned, array]).take([0, 1])["pixels"]
    assert torch.equal(taken[0], taken[1])
    wide = encoded(Image.fromarray(smooth(20, 60)), "JPEG", exif=exif)
    found = ImageModality().summary([wide])
    assert (found["width"][0], found["height"][0]) == (20, 60)


def test_each_picture_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count: list[int] = []
    real = image_module.decode
    monkeypatch.setattr(image_module, "decode", lambda value, row: (count.append(row), real(value, row))[1])
    arrays = [RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(4)]
    prepared = prepare(arrays)
    first = prepared.take([2, 0])["pixels"]
    second = prepared.take([0, 2, 1])["pixels"]
    assert count == [2, 0, 1]
    assert torch.equal(first[0], second[1]) and torch.equal(first[1], second[0])
    assert len(prepared) == 4 and prepared.lengths.tolist() == [1, 1, 1, 1]


def test_what_is_kept_is_bounded_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    arrays = [RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(5)]
    piece = 32 * 32 * 3
    prepared = PreparedImages(arrays, Stub(), limit=2 * piece + 5)  # type: ignore[arg-type]
    taken = prepared.take(range(5))["pixels"]
    assert torch.equal(prepared.take(range(5))["pixels"], taken)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size == 2 * piece
    none = PreparedImages(arrays, Stub(), limit=0)  # type: ignore[arg-type]
    assert torch.equal(none.take(range(5))["pixels"], taken)
    assert len(list(tmp_path.iterdir())) == 1
    del prepared
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_module, "free_space", lambda: 1000)
    prepared = prepare([smooth(32, 32)])
    assert prepared.take([0])["pixels"].shape == (1, 3, 32, 32)


# --- what cannot be read


def bad_pictures(folder: Path) -> list[tuple[Any, str]]:
    text = folder / "notes.png"
    text.write_text("no picture")
    empty = folder / "empty.jpg"
    empty.write_bytes(b"")
    return [
        (str(folder / "missing.png"), r"row 1 \('.*missing.png'\): there is no such file"),
        (text, r"row 1 \('.*notes.png'\): not a picture"),
        (empty, r"row 1 \('.*empty.jpg'\): not a picture"),
        (folder, "row 1 .*cannot be read"),
        (b"rubbish", "row 1: not a picture"),
        (b"", "row 1: not a picture"),
        (None, "row 1: expected a picture as .* received NoneType"),
        (3.0, "row 1: expected a picture as .* received float"),
        ({"bytes": None, "path": None}, "row 1: expected a picture as .* received NoneType"),
        ("nul\0byte.png", "row 1 .*cannot be read"),
        (np.zeros((8, 8, 3)), r"row 1: expected a uint8 array .* received float64 \(8, 8, 3\)"),
        (np.zeros((8, 8, 2), np.uint8), r"received uint8 \(8, 8, 2\)"),
        (np.zeros((8,), np.uint8), r"received uint8 \(8,\)"),
        (np.zeros((0, 8, 3), np.uint8), r"received uint8 \(0, 8, 3\)"),
    ]


@pytest.mark.parametrize("case", range(14))
def test_what_is_no_picture_is_named_before_anything_is_spent(case: int, tmp_path: Path) -> None:
    value, sentence = bad_pictures(tmp_path)[case]
    with pytest.raises(DataError, match=sentence):
        prepare([smooth(8, 8), value])
    with pytest.raises(DataError, match="row 1"):
        ImageModality().summary([smooth(8, 8), value])


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_cut_short_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "cut.img"
    data = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    path.write_bytes(data[: len(data) // 2])
    prepared = prepare([path])
    with pytest.raises(DataError, match=r"row 0 \('.*cut.img'\): damaged or cut short"):
        prepared.take([0])
    with pytest.raises(DataError, match=r"cut\.img"):
        open_image(path)
    with pytest.raises(DataError, match=r"cut\.img"):
        ImageModality().summary([path])


def test_too_many_pixels_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = encoded(Image.new("1", (3000, 2000)))
    assert len(bomb) < 10_000
    monkeypatch.setattr(_pictures, "MAX_PIXELS", 5_000_000)
    with pytest.raises(DataError, match="row 0: 3000 by 2000 pixels, more than the 5,000,000 allowed"):
        prepare([bomb])


def test_a_huge_header_is_refused() -> None:
    """60,000 by 60,000 pixels in a few bytes: Pillow itself refuses, and so do we, in our own words."""
    bomb = bytearray(encoded(Image.new("1", (8, 8))))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    import zlib

    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    with pytest.raises(DataError, match=r"row 0: .*pixels"):
        prepare([bytes(bomb)])


def test_a_thread_of_pixels_does_not_fill_the_memory() -> None:
    """Scaling the shorter side of 1 pixel up to 32 would make 6.4 million pixels a row of pixels, 32 of them."""
    import tracemalloc

    thread = np.zeros((1, 200_000), np.uint8)
    thread[:, 100_000:] = 255
    tracemalloc.start()
    taken = prepare([thread, thread.T]).take([0, 1])["pixels"]
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
    assert taken[0, 0, :, 0].max() < 0.2 < 0.8 < taken[0, 0, :, -1].min()
    assert torch.equal(taken[1], taken[0].transpose(1, 2))
    found = ImageModality().summary([thread])
    assert found["width"][0] == 200_000 and found["brightness"][0] == pytest.approx(0.5, abs=0.02)


def test_a_backbone_of_text_is_refused() -> None:
    stub = Stub()
    stub.modality = "text"
    with pytest.raises(DataError, match="the rows are pictures"):
        ImageModality().prepare([smooth(8, 8)], stub)  # type: ignore[arg-type]


def test_no_rows() -> None:
    assert len(prepare([])) == 0
    assert ImageModality().summary([])["width"].shape == (0,)


def test_summary() -> None:
    half = np.zeros((30, 40, 3), np.uint8)
    half[:, 20:] = 255
    found = ImageModality().summary([half, np.full((10, 5), 51, np.uint8), encoded(Image.new("RGB", (9, 8), "white"))])
    assert found["width"].tolist() == [40, 5, 9]
    assert found["height"].tolist() == [30, 10, 8]
    assert found["brightness"].tolist() == pytest.approx([0.5, 0.2, 1.0], abs=0.01)
    assert found["contrast"].tolist() == pytest.approx([0.5, 0.0, 0.0], abs=0.02)


def test_real_photographs(data_root: Path) -> None:
    found = sorted((data_root / "hymenoptera").rglob("*.jpg"))[:4]
    if not found:
        pytest.skip("the photographs are not there")
    taken = prepare(found, size=64, resize=73).take(range(len(found)))["pixels"]
    assert 0.05 < float(taken.std()) < 0.5
