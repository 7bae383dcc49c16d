"""Rows of different requests in one batch give what they give alone, for real networks of every modality."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import headstart as hs
from headstart.encoded import Encoded
from headstart.serve.lane import joined
from headstart.serve.limits import Limits
from headstart.serve.refusals import Refused
from headstart.serve.served import Served
from serving import encoded, picture, sound

WORDS = "where is my parcel refund please password lost today again still".split()  # noqa: SIM905
TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join)


def served(folder: Path, executor: ThreadPoolExecutor, **limits: Any) -> Served:
    return Served("model", hs.load(folder), Limits(**limits), executor)


def answers(folder: Path, requests: list[list[Any]], **limits: Any) -> list[Any]:
    """Raw outputs of every request, all asked at once."""

    async def main() -> list[Any]:
        with ThreadPoolExecutor(1) as executor:
            one = served(folder, executor, **limits)
            found = await asyncio.gather(*map(one.answers, requests), return_exceptions=True)
            await one.close()
            return [each if isinstance(each, BaseException) else each[0] for each in found]

    return asyncio.run(main())


@pytest.mark.parametrize("kind", ["text", "image", "audio"])
def test_joined_rows_are_what_take_gives(kind: str, request: pytest.FixtureRequest) -> None:
    model = hs.load(request.getfixturevalue(f"{kind}_bundle"))
    values: list[Any] = {
        "text": ["where is", "my parcel please today again", "lost"],
        "image": [encoded(picture(seed)) for seed in range(3)],
        "audio": [sound(seed, 0.2 + 0.1 * seed) for seed in range(3)],
    }[kind]
    prepared = Encoded.of(model.modality, model.model.backbone, values).prepared
    found = joined([prepared.take([row]) for row in range(3)], prepared.padding)
    expected = prepared.take(range(3))
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name


def test_an_input_that_only_some_rows_have_is_zero_for_the_others() -> None:
    long = {"input_ids": torch.tensor([[5, 6, 7]]), "token_type_ids": torch.tensor([[0, 1, 1]])}
    short = {"input_ids": torch.tensor([[8]])}
    found = joined([short, long], {"input_ids": 9})
    assert found["input_ids"].tolist() == [[8, 9, 9], [5, 6, 7]]
    assert found["token_type_ids"].tolist() == [[0, 0, 0], [0, 1, 1]]


@settings(max_examples=12)
@given(st.lists(st.lists(TEXT, min_size=1, max_size=6), min_size=1, max_size=6), st.integers(1, 8))
def test_texts_in_company_are_answered_as_alone(text_bundle: Path, requests: list[list[str]], batch: int) -> None:
    alone = hs.load(text_bundle)
    for texts, found in zip(requests, answers(text_bundle, requests, batch_rows=batch), strict=True):
        assert np.allclose(found, np.concatenate([alone.outputs([text]) for text in texts]), atol=1e-5)


def test_pictures_in_company_are_answered_as_alone(image_bundle: Path) -> None:
    requests = [[encoded(picture(seed, (30 + seed, 50))) for seed in range(n)] for n in (1, 3, 2)]
    alone = hs.load(image_bundle)
    for rows, found in zip(requests, answers(image_bundle, requests, batch_rows=4), strict=True):
        assert np.allclose(found, alone.outputs(rows), atol=1e-5)


def test_sounds_in_company_are_answered_as_alone(audio_bundle: Path) -> None:
    requests = [[sound(seed, 0.2 + 0.05 * seed) for seed in range(n)] for n in (1, 3, 2)]
    alone = hs.load(audio_bundle)
    for rows, found in zip(requests, answers(audio_bundle, requests, batch_rows=4), strict=True):
        assert np.allclose(found, np.concatenate([alone.outputs([row]) for row in rows]), atol=1e-4)


def test_a_row_that_cannot_be_decoded_fails_its_own_request(image_bundle: Path) -> None:
    whole = encoded(picture(2, (90, 90)))
    found = answers(image_bundle, [[whole], [whole, whole[: len(whole) // 2]], [whole]])
    assert isinstance(found[1], Refused) and found[1].status == 400
    assert found[1].sentence == "row 1: it is damaged, or cannot be read as image"
    assert np.array_equal(found[0], found[2])


def test_a_full_queue_is_refused_before_rows_are_decoded(text_bundle: Path) -> None:
    found = answers(text_bundle, [["lost"] * 4, ["lost"] * 4, ["lost"]], rows=4, queue_rows=5)
    assert [getattr(each, "status", 200) for each in found] == [200, 429, 200]


def test_short_texts_are_encoded_at_once_and_long_ones_aside(text_bundle: Path) -> None:
    threads: dict[int, str] = {}

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            one = served(text_bundle, executor)
            encode = one.lane._encode

            def watched(inputs: Any) -> Any:
                threads[sum(map(len, inputs))] = threading.current_thread().name
                return encode(inputs)

            one.lane._encode = watched  # type: ignore[method-assign]
            await one.answers(["parcel"])
            await one.answers(["parcel " * 200])
            with one.lane._encoding:  # the lane's thread is at work
                waiting = asyncio.ensure_future(one.answers(["lost"]))
                await asyncio.sleep(0.02)
                assert 4 not in threads, "a tokenizer must not be used by two threads at once"
            await waiting
            await one.close()

    asyncio.run(main())
    assert threads[6] == threading.main_thread().name
    assert threads[1400].startswith("encode") and threads[4].startswith("encode")


def test_an_answer_that_is_not_a_number_is_an_error(text_bundle: Path) -> None:
    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            one = served(text_bundle, executor)
            with torch.no_grad():
                one.bundle.model.head.bias[0] = float("nan")  # type: ignore[union-attr,operator,index]
            with pytest.raises(FloatingPointError, match="numbers that are not finite"):
                await one.answers(["parcel"])
            await one.close()

    asyncio.run(main())


def test_eight_bits_answer_in_company_as_alone(text_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    hs.export(text_bundle, tmp_path / "int8", quantize="int8", gate="99%", rows=_rows(tmp_path))
    texts = ["where is my parcel today", "refund", "password lost again still please"]
    (found,) = answers(tmp_path / "int8", [texts])
    alone = [answers(tmp_path / "int8", [[text]])[0][0] for text in texts]
    assert np.array_equal(found, np.stack(alone))


def _rows(folder: Path) -> Path:
    path = folder / "rows.csv"
    path.write_text("text,label\nwhere is my parcel,delivery\nrefund please,refund\n", encoding="utf-8")
    return path
