"""Text: tokenised once, padded to the longest of the rows that are taken."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headstart import catalog
from headstart.errors import DataError
from headstart.modalities import text as text_module
from headstart.modalities._scratch import Flat
from headstart.modalities.text import TextModality

WORDS = ["the", "a", "cat", "dog", "sat", "on", "mat", "red", "blue"]


class Stub:
    """What the modality asks of a text backbone."""

    modality = "text"
    ref = "stub"

    def __init__(self, tokenizer: Any, **settings: Any) -> None:
        self.tokenizer = tokenizer
        self.preprocessing = {"max_length": 8, "lower": False, "prompt": "", "pad_id": 0, **settings}
        self.device = torch.device("cpu")

    def parameters(self) -> Any:
        """One parameter, on this device."""
        return iter([type("Parameter", (), {"device": self.device})()])


@pytest.fixture(scope="module")
def make() -> Callable[..., Any]:
    """A tokenizer over a few words; `types` gives the type of the tokens of a text."""

    def made(types: int = 0) -> Any:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
        tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(pieces)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"[CLS]:0 $A:{types} [SEP]:0", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="[PAD]",
            unk_token="[UNK]",
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        )

    return made


def test_it_is_found_by_name() -> None:
    assert catalog.find("modalities", "text") is TextModality
    assert (TextModality.name, TextModality.continuous) == ("text", False)


def test_rows_are_the_tokenizers_padded_to_the_longest(make: Callable[..., Any]) -> None:
    values = ["the cat sat", "dog", "", "the cat sat on the red mat and more and more", "zebra mat"]
    prepared = TextModality().prepare(values, Stub(make()))  # type: ignore[arg-type]
    oracle = make()
    wanted = [oracle(value, truncation=True, max_length=8)["input_ids"] for value in values]
    assert len(prepared) == 5
    assert prepared.lengths.dtype == np.int32
    assert prepared.lengths.tolist() == [len(row) for row in wanted] == [5, 3, 2, 8, 4]
    taken = prepared.take([4, 0, 1])
    assert set(taken) == {"input_ids", "attention_mask"}
    assert taken["input_ids"].dtype == taken["attention_mask"].dtype == torch.int64
    assert taken["input_ids"].shape == (3, 5)
    for place, row in enumerate([4, 0, 1]):
        length = len(wanted[row])
        assert taken["input_ids"][place].tolist() == wanted[row] + [0] * (5 - length)
        assert taken["attention_mask"][place].tolist() == [1] * length + [0] * (5 - length)
    assert prepared.take([2])["input_ids"].tolist() == [[2, 3]]
    assert prepared.truncated == 1
    assert prepared.take([])["input_ids"].shape[0] == 0


def test_chunks_join_without_a_seam(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    values = [" ".join(WORDS[: 1 + i % 6]) for i in range(23)]
    whole = TextModality().prepare(values, Stub(make()))  # type: ignore[arg-type]
    monkeypatch.setattr(text_module, "CHUNK", 5)
    pieces = TextModality().prepare(values, Stub(make()))  # type: ignore[arg-type]
    assert pieces.lengths.tolist() == whole.lengths.tolist()
    assert torch.equal(pieces.take(range(23))["input_ids"], whole.take(range(23))["input_ids"])


def test_types_are_given_only_where_they_say_something(make: Callable[..., Any]) -> None:
    taken = TextModality().prepare(["cat", "the cat"], Stub(make(types=1))).take([0, 1])  # type: ignore[arg-type]
    assert taken["token_type_ids"].tolist() == [[0, 1, 0, 0], [0, 1, 1, 0]]


def test_prompt_lower_case_and_padding_id(make: Callable[..., Any]) -> None:
    stub = Stub(make(), prompt="the ", lower=True, pad_id=7)
    taken = TextModality().prepare(["CAT", "cat sat"], stub).take([0, 1])  # type: ignore[arg-type]
    the, cat, sat = (4 + WORDS.index(word) for word in ("the", "cat", "sat"))
    assert taken["input_ids"].tolist() == [[2, the, cat, 3, 7], [2, the, cat, sat, 3]]


@pytest.mark.parametrize("bad", [None, 3.5, float("nan"), b"cat", ["cat"], Path("cat")])
def test_what_is_not_text_is_named_by_its_row(bad: Any, make: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match=f"row 2: expected text, received {type(bad).__name__}"):
        TextModality().prepare(["cat", "dog", bad], Stub(make()))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="row 1"):
        TextModality().summary(["cat", bad])


def test_broken_unicode_is_named_by_its_row(make: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match="row 1: the text is not valid Unicode"):
        TextModality().prepare(["cat", "a \ud800 b", "dog"], Stub(make()))  # type: ignore[arg-type]


def test_a_backbone_of_pictures_is_refused(make: Callable[..., Any]) -> None:
    stub = Stub(make())
    stub.modality = "image"
    with pytest.raises(DataError, match="the rows are text"):
        TextModality().prepare(["cat"], stub)  # type: ignore[arg-type]


def test_no_rows(make: Callable[..., Any]) -> None:
    prepared = TextModality().prepare([], Stub(make()))  # type: ignore[arg-type]
    assert len(prepared) == 0 and prepared.lengths.shape == (0,)


def test_a_file_is_made_for_much_and_not_for_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("headstart.modalities._scratch.SMALL", 40)
    little, much = Flat(np.int32), Flat(np.int32)
    for values in ([1, 2, 3], np.arange(7)):  # 40 bytes
        little.append(values)
        much.append(values)
    assert not list(tmp_path.iterdir())
    much.append([9])
    assert len(list(tmp_path.iterdir())) == 1
    much.append([10, 11])
    expected = [1, 2, 3, 0, 1, 2, 3, 4, 5, 6]
    assert little.finish().tolist() == expected and not little.finish().flags.writeable
    assert much.finish().tolist() == [*expected, 9, 10, 11] and not much.finish().flags.writeable
    assert Flat(np.float32).finish().shape == (0,)


def test_what_is_kept_is_a_copy() -> None:
    values = np.arange(3, dtype=np.int32)
    flat = Flat(np.int32)
    flat.append(values)
    values[:] = 7
    assert flat.finish().tolist() == [0, 1, 2]


def test_ids_lie_in_a_file_that_goes_with_them(
    make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("headstart.modalities._scratch.SMALL", 100)
    prepared = TextModality().prepare(["the cat"] * 50, Stub(make()))  # type: ignore[arg-type]
    sizes = {path.stat().st_size for path in tmp_path.glob("headstart-*")}
    assert 50 * 4 * 4 in sizes  # 50 rows of 4 tokens of 4 bytes
    assert isinstance(prepared._ids, np.memmap)
    kept = prepared.take([3])["input_ids"]
    del prepared
    gc.collect()
    assert not list(tmp_path.iterdir())
    assert kept.shape == (1, 4)
    with pytest.raises(DataError):
        TextModality().prepare(["the cat", None], Stub(make()))  # type: ignore[arg-type]
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_summary() -> None:
    found = TextModality().summary(["the cat", "", "  naïve \n words  here "])
    assert found["characters"].tolist() == [7, 0, 22]
    assert found["words"].tolist() == [2, 0, 3]


def test_on_a_gpu_lengths_are_rounded_up_within_the_positions(make: Callable[..., Any]) -> None:
    """The numbers are those of the CPU, with more padding behind them."""
    values = ["dog", "the cat sat on the red mat and more", "the cat sat on the red mat and more and more and more"]
    found = {}
    for place in ("cpu", "cuda"):
        stub = Stub(make(), max_length=12)
        stub.device = torch.device(place)
        prepared = TextModality().prepare(values, stub)  # type: ignore[arg-type]
        found[place] = [prepared.take(rows)["input_ids"] for rows in ([0], [0, 1], [2])]
        assert [prepared.room([0]), prepared.room([0, 1])] == ([3, 11] if place == "cpu" else [8, 16])
    assert [ids.shape[1] for ids in found["cuda"]] == [8, 12, 12]
    for cpu, cuda in zip(*found.values(), strict=True):
        assert torch.equal(cuda[:, : cpu.shape[1]], cpu) and not cuda[:, cpu.shape[1] :].any()
