"""Paraphrases by a pair of tiny seq2seq networks with random weights, in the layout of the hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_helpers import make_context
from torch import Tensor

import headstart as hs
from headstart.encoded import Encoded
from headstart.errors import MethodError
from headstart.hooks import Hooks
from headstart.methods import _seq2seq
from headstart.methods.backtranslate import Backtranslate
from headstart.modalities.text import TextModality
from headstart.protocols import Method
from method_runs import make_rows, same
from sample_texts import TICKETS, WORDS

TEXTS = [text for texts in TICKETS.values() for text in texts]
LABELS = [name for name, texts in TICKETS.items() for _ in texts]


def write_model(folder: Path, kind: str, seed: int) -> None:
    """A network that turns words into words, with a fast tokenizer of one id a word."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", *WORDS[5:]]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    inner.post_processor = processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 3)])  # type: ignore[assignment]
    hf.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", bos_token="[BOS]", eos_token="[EOS]"
    ).save_pretrained(folder)
    ids = {"pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 2, "vocab_size": len(words)}
    config: Any
    if kind == "bart":
        config = hf.BartConfig(
            **ids, bos_token_id=2, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=40,
            forced_eos_token_id=None, init_std=0.5,
        )  # fmt: skip
    else:
        config = hf.T5Config(**ids, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    torch.manual_seed(seed)
    hf.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("pair")
    with torch.random.fork_rng():
        write_model(root / "there", "bart", 1)
        write_model(root / "back", "t5", 2)
    return str(root / "there"), str(root / "back")


def made(pair: tuple[str, str], cache: Path, seed: int = 0, **options: Any) -> list[tuple[int, str]]:
    method = Backtranslate(*pair, cache=str(cache), **options)
    return method.rows(TEXTS, make_context(seed=seed))


def slowly(folder: str, text: str) -> str:
    """One text alone, without padding."""
    import transformers as hf

    tokenizer: Any = hf.AutoTokenizer.from_pretrained(folder)
    network: Any = hf.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        answer = network.generate(input_ids=ids, num_beams=4, do_sample=False, max_new_tokens=5, max_length=None)
    return " ".join(tokenizer.decode(answer[0], skip_special_tokens=True).split())


@pytest.mark.parametrize("end", [0, 1])
def test_a_batch_says_what_each_text_alone_says(pair: tuple[str, str], end: int) -> None:
    folder = pair[end]
    texts = ["where", "my order is late please", "refund my card", "login"]
    translator = _seq2seq.find(folder, "x")
    found = _seq2seq.translate(translator, texts, temperature=0, batch_size=3, option="x")
    alone = [slowly(folder, text) for text in texts]
    assert all(alone) and len(set(alone)) > 1
    # Five new words are asked for alone, up to two for each word together.
    assert [text.split()[:5] for text in found] == [text.split()[:5] for text in alone]


def test_a_paraphrase_is_there_and_back(pair: tuple[str, str], tmp_path: Path) -> None:
    found = made(pair, tmp_path, temperature=0)
    ends = [_seq2seq.find(folder, "x") for folder in pair]
    now = list(TEXTS)
    for end in ends:
        now = _seq2seq.translate(end, now, temperature=0, batch_size=32, option="x")
    expected = [(row, text) for row, text in enumerate(now) if text and text != TEXTS[row]]
    assert found == expected and found


def test_draws_follow_the_seed_alone_and_copies_differ(pair: tuple[str, str], tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = made(pair, tmp_path / "a", seed=5, copies=2)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert made(pair, tmp_path / "b", seed=5, copies=2) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert made(pair, tmp_path / "b", seed=6, copies=2) != first
    assert len(first) > len(TEXTS) and len(set(first)) == len(first)
    assert {row for row, _ in first} <= set(range(len(TEXTS)))


def test_the_cache_is_read_under_its_key_and_made_anew_when_broken(
    pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(pair, tmp_path)
    (file,) = tmp_path.glob("*.json")
    calls: list[str] = []
    real = _seq2seq.translate

    def counted(*args: Any, **options: Any) -> list[str]:
        calls.append(options["option"])
        return real(*args, **options)

    monkeypatch.setattr("headstart.methods.backtranslate.translate", counted)
    assert made(pair, tmp_path) == first and calls == []
    file.write_text(file.read_text()[:-5])
    assert made(pair, tmp_path) == first and calls == ["backtranslate:there", "backtranslate:back"]
    made(pair, tmp_path, temperature=0.5)
    assert len(calls) == 4 and len(list(tmp_path.glob("*.json"))) == 2
    other = tmp_path / "models"
    shutil.copytree(pair[0], other)
    made((str(other), pair[1]), tmp_path)
    assert len(calls) == 4, "the same weights in another place have the same key"
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "scale_embedding": True}))
    made((str(other), pair[1]), tmp_path)
    assert len(calls) == 6


def test_empty_equal_and_repeated_paraphrases_are_left_out(
    pair: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([["x"] * 3, ["a b", "", "new"], ["x"] * 3, ["other", "fresh", "new"]])
    monkeypatch.setattr("headstart.methods.backtranslate.translate", lambda *args, **options: next(answers))
    method = Backtranslate(*pair, copies=2, cache=str(tmp_path))
    assert method.rows(["a  b", "c", "d"], make_context()) == [(2, "new"), (0, "other"), (1, "fresh")]


def run(pair: tuple[str, str], tiny_bert: Path, cache: Path, **options: Any) -> Any:
    texts = [f"{text} {word}" for text in TEXTS for word in ("today", "please", "help")]
    labels = [label for label in LABELS for _ in range(3)]
    methods = [hs.methods.Backtranslate(*pair, cache=str(cache)), hs.methods.Mixup()]
    return hs.fit(texts, labels, backbone=f"file:{tiny_bert}", methods=methods, epochs=2, **options)


def weights(model: Any) -> Mapping[str, Tensor]:
    found: Mapping[str, Tensor] = model.model.state_dict()
    return found


def test_a_fit_counts_the_rows_repeats_and_resumes(pair: tuple[str, str], tiny_bert: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    steps: list[int] = []

    def listen(event: str, figures: Any) -> None:
        notes.extend([figures["text"]] if event == "note" else [])
        steps.extend([figures["rows"]] if event == "step" else [])

    model = run(pair, tiny_bert, tmp_path / "a", listen=listen)
    report = model.report.to_json()
    stage = report["stages"][-1]
    trained, added = report["rows"]["trained"], stage["details"]["rows_added"]["backtranslate"]
    assert 0 < added <= trained
    assert notes == [f"'backtranslate' adds {added} rows to the {trained} training rows"]
    assert stage["rows_trained"] == sum(steps) == 2 * (trained + added)
    assert report["rows"]["read"] == trained + report["rows"]["validated"]

    class Cut(Exception):
        pass

    def cut(event: str, figures: Any) -> None:
        if event == "step" and figures["step"] == 3:
            raise Cut

    options = {"sets": ["training.checkpoint_every=1e-9"], "out": tmp_path / "run"}
    with pytest.raises(Cut):
        run(pair, tiny_bert, tmp_path / "b", listen=cut, **options)
    shutil.rmtree(tmp_path / "b")
    resumed = run(pair, tiny_bert, tmp_path / "b", resume=True, **options)
    assert same(weights(resumed), weights(model))


def test_added_rows_have_their_sources_label_weight_and_origin() -> None:
    rows = make_rows("text")
    rows = Encoded(rows.prepared, rows.targets, torch.arange(24.0), torch.arange(24) % 2)

    class Words(TextModality):
        def prepare(self, values: Any, backbone: Any) -> Any:
            seen.append(list(values))
            return rows.prepared

    seen: list[list[Any]] = []
    found = rows.extended(Words(), None, list("abc"), [(7, "x"), (2, "y"), (7, "z")])  # type: ignore[arg-type]
    assert seen == [["a", "b", "c", "x", "y", "z"]]
    assert rows.targets is not None and found.targets is not None
    for new, old in ((found.targets, rows.targets), (found.weight, rows.weight), (found.origin, rows.origin)):
        assert torch.equal(new[:24], old) and torch.equal(new[24:], old[[7, 2, 7]])
    assert np.array_equal(found.prepared.lengths, rows.prepared.lengths)


def test_a_row_from_nowhere_is_refused() -> None:
    class Odd(Method):
        def rows(self, inputs: Any, ctx: Any) -> Any:
            return [(3, "x")]

    ctx = make_context()
    with pytest.raises(MethodError, match="'odd' added a row that was made from none of the 3 training rows"):
        Hooks({"odd": Odd()}, ctx.task, ctx.modality, 0).rows(list("abc"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "expected backtranslate:there to be a folder or hub id"),
        ({"there": "a/b", "back": 3}, "expected backtranslate:back to be a folder or hub id.*received 3"),
        ({"there": "./nowhere", "back": "a/b"}, "backtranslate:there: there is no folder './nowhere'"),
        ({"there": "a/b", "back": "a/b", "copies": 0}, "backtranslate:copies"),
        ({"there": "a/b", "back": "a/b", "copies": 2, "temperature": 0}, "copies above 1 needs a temperature"),
        ({"there": "a/b", "back": "a/b", "temperature": -1}, "backtranslate:temperature"),
        ({"there": "a/b", "back": "a/b", "batch": 0}, "backtranslate:batch"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(MethodError, match=says):
        Backtranslate(**options)


def test_models_that_cannot_translate_are_refused(
    pair: tuple[str, str], tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(there: Path | str, says: str) -> None:
        with pytest.raises(MethodError, match=f"backtranslate:there: .*{says}"):
            made((str(there), pair[1]), tmp_path / "cache")

    refused(tiny_bert, r"\(bert\) does not turn texts into texts")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "has no config.json")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("nobody/nothing", "not on this machine, and cannot be fetched")
    broken = tmp_path / "broken"
    shutil.copytree(pair[0], broken)
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    refused(broken, "cannot be loaded")
    file.rename(broken / "pytorch_model.bin")
    refused(broken, "has no weights as safetensors, and pickles are not read")


def test_pictures_are_refused() -> None:
    ctx = make_context("image")
    with pytest.raises(MethodError, match="it translates texts"):
        Hooks({"backtranslate": Backtranslate("a/b", "b/a")}, ctx.task, ctx.modality, 0)
