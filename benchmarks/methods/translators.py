"""Two small translation models for `backtranslate`, made from scratch: English to German and back, on Multi30k.

No pretrained pair ships as a Python package, so these stand in where one is measured: BART's layout with 2 + 2 blocks
of 192 numbers, a byte-level vocabulary of 6,000 for both languages, 29,000 pairs of captions of photos. Each model
becomes a folder in the layout of the hub with a `made.json` that says how well it translates the 1,014 validation
captions (BLEU of greedy answers, where sacrebleu is installed).

    python benchmarks/methods/translators.py FOLDER --minutes 16      # of one thread; FOLDER/en-de and FOLDER/de-en
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from pathlib import Path
from typing import Any

WORDS, WIDTH, ROWS, RATE, WARM = 6000, 192, 128, 1e-3, 200


def lines(root: Path, part: str, language: str) -> list[str]:
    """The captions of a part, in order."""
    return (root / "multi30k_en_de" / f"{part}.{language}").read_text(encoding="utf-8").splitlines()


def tokenizer(root: Path) -> Any:
    """One vocabulary of pieces of bytes for both languages, so that no text has an unknown part."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    found.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=WORDS, special_tokens=special, initial_alphabet=alphabet)
    found.train_from_iterator([*lines(root, "train", "en"), *lines(root, "train", "de")], trainer)
    found.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=found, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=128
    )


def network(words: int) -> Any:
    """BART of 2 + 2 blocks from random weights."""
    from transformers import BartConfig, BartForConditionalGeneration

    config = BartConfig(
        vocab_size=words, d_model=WIDTH, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=768, decoder_ffn_dim=768, dropout=0.1, max_position_embeddings=128,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
        scale_embedding=True, init_std=WIDTH**-0.5,
    )  # fmt: skip
    return BartForConditionalGeneration(config)


def train(root: Path, source: str, target: str, folder: Path, minutes: float) -> dict[str, Any]:
    """Learn until the time is over, at a rate that has then come down to 0, and save."""
    import torch

    torch.manual_seed(0)
    words = tokenizer(root)
    model = network(len(words)).train()
    pairs = list(
        zip(
            words(lines(root, "train", source))["input_ids"],
            words(lines(root, "train", target))["input_ids"],
            strict=True,
        )
    )
    pairs = [pair for pair in pairs if max(map(len, pair)) <= 100]
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    draw, started, step, epochs = random.Random(0), time.process_time(), 0, 0
    done = 0.0
    while done < 1:
        draw.shuffle(pairs)
        pools = [
            sorted(pairs[at : at + 40 * ROWS], key=lambda pair: len(pair[1])) for at in range(0, len(pairs), 40 * ROWS)
        ]
        batches = [pool[at : at + ROWS] for pool in pools for at in range(0, len(pool), ROWS)]
        draw.shuffle(batches)
        for batch in batches:
            done = (time.process_time() - started) / (60 * minutes)
            if done >= 1:
                break
            rate = RATE * min(1.0, (step + 1) / WARM) * 0.5 * (1 + math.cos(math.pi * done))
            for group in optimiser.param_groups:
                group["lr"] = rate
            given, wanted = (padded([pair[side] for pair in batch]) for side in (0, 1))
            before = torch.cat([torch.full((len(batch), 1), 2), wanted[:, :-1]], 1)
            scores = model(input_ids=given, attention_mask=(given != 0).long(), decoder_input_ids=before).logits
            loss = torch.nn.functional.cross_entropy(
                scores.flatten(0, 1), wanted.flatten(), ignore_index=0, label_smoothing=0.1
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()
            step += 1
            if step % 100 == 0:
                print(f"{source}-{target} step {step} loss {float(loss):.3f} ({done:.0%})", flush=True)
        else:
            epochs += 1
    model.eval().save_pretrained(folder)
    words.save_pretrained(folder)
    made = {
        "from": source,
        "to": target,
        "minutes": minutes,
        "steps": step,
        "epochs": epochs,
        "parameters": model.num_parameters(),
        **bleu(root, model, words, source, target),
    }
    (folder / "made.json").write_text(json.dumps(made, indent=1), encoding="utf-8")
    return made


def padded(rows: list[list[int]]) -> Any:
    """Token ids (N,T), 0 behind the shorter rows."""
    import torch

    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def bleu(root: Path, model: Any, words: Any, source: str, target: str) -> dict[str, float]:
    """BLEU of greedy translations of the validation captions; nothing without sacrebleu."""
    import torch

    try:
        from sacrebleu import corpus_bleu
    except ImportError:
        return {}
    asked, wanted, found = lines(root, "val", source), lines(root, "val", target), []
    for at in range(0, len(asked), 64):
        given = padded(words(asked[at : at + 64])["input_ids"])
        with torch.inference_mode():
            answers = model.generate(
                input_ids=given, attention_mask=(given != 0).long(), num_beams=1, do_sample=False, max_new_tokens=80
            )
        found += words.batch_decode(answers, skip_special_tokens=True)
    return {"bleu": round(corpus_bleu([text.strip() for text in found], [wanted]).score, 1)}


def main() -> None:
    """Both directions, or one."""
    parser = argparse.ArgumentParser(description="two small translation models on captions of photos")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("HEADSTART_DATA", "../shared/data")))
    parser.add_argument("--minutes", type=float, default=16)
    parser.add_argument("--ways", nargs="+", choices=("en-de", "de-en"), default=["en-de", "de-en"])
    options = parser.parse_args()
    for way in options.ways:
        print(json.dumps(train(options.data_root, *way.split("-"), options.folder / way, options.minutes)), flush=True)


if __name__ == "__main__":
    main()
