"""Pieces of a step on a processor, as torch makes them and as Headstart does: dropout, attention, a table, a layer.

dropout     32 rows of 20 tokens, 384 numbers each, a rate of 0.1: forward and backward
attention   32 rows of some tokens, 12 heads of 32 numbers, padded by two tokens: forward and backward,
            torch's kernel and `backbones._attention.attended`; "answers": forward alone, 1,024 tokens in all
table       30,522 rows of 384 numbers, 400 tokens of 300 kinds looked up: forward, backward, norm, AdamW of all
            rows and of those that were ever read (3,000 of them)
layer       tokens of 384 numbers to 1,536 each: forward and backward; "answers": forward alone

Freed memory stays with the process (`headstart.heap`), for both sides. They turn about, one thread; the ratio is the
median of the pairs in CPU seconds, torch's over Headstart's. Each piece is one JSON line.

    python benchmarks/speed/pieces.py --pairs 40
    python benchmarks/speed/pieces.py --pairs 40 --only layer
    python benchmarks/speed/pieces.py --table
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
OUT = HERE / "pieces.jsonl"
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}
Work = Callable[[], Any]


def dropout(kind: torch.dtype) -> tuple[Work, Work]:
    """torch's and Headstart's, with its backward pass."""
    from headstart import dropping

    states = torch.randn(32, 20, 384).to(kind).requires_grad_()
    slope = torch.ones_like(states)

    def both(drop: Callable[[Tensor, float], Tensor]) -> None:
        torch.autograd.grad(drop(states, 0.1), states, slope)

    return lambda: both(nn.functional.dropout), lambda: both(dropping.dropped)


def attention(kind: torch.dtype, tokens: int, rate: float, learns: bool) -> tuple[Work, Work]:
    """torch's kernel and steps, over states that lie as a layer leaves them; without learning, forward alone."""
    from headstart.backbones._attention import attended

    rows = 32 if learns else 1024 // tokens
    states = [torch.randn(rows, tokens, 384).to(kind).requires_grad_(learns) for _ in range(3)]
    ends = torch.full((rows, 1), tokens) - 2 * (torch.arange(rows) % 2)[:, None]
    mask = (torch.arange(tokens) < ends)[:, None, None].expand(rows, 1, tokens, tokens)
    slope = torch.ones_like(states[0])

    def both(make: Callable[..., Tensor]) -> None:
        with torch.inference_mode(not learns):
            parts = [state.view(rows, tokens, 12, 32).transpose(1, 2) for state in states]
            made = make(*parts).transpose(1, 2).reshape(rows, tokens, 384)
        if learns:
            torch.autograd.grad(made, states, slope)

    kernel = nn.functional.scaled_dot_product_attention
    return lambda: both(lambda q, k, v: kernel(q, k, v, mask, rate)), lambda: both(
        lambda q, k, v: attended(q, k, v, mask, rate, None)
    )


def table() -> tuple[Work, Work]:
    """All rows moved, and those that were read."""
    from headstart import tables
    from headstart.optimiser import Optimiser
    from headstart.spec import TrainingSpec
    from headstart.values import Group

    sides: list[Work] = []
    for rows in (False, True):
        module = nn.Embedding(30_522, 384)
        optimiser = Optimiser(TrainingSpec(), 1e-4)
        optimiser.set_groups([Group((module.weight,), 1.0)], tables.find(module) if rows else [])
        known = torch.randperm(30_522, generator=torch.Generator().manual_seed(0))[:3000]
        draws = torch.Generator().manual_seed(1)

        def step(
            module: nn.Embedding = module, optimiser: Optimiser = optimiser, known: Tensor = known,
            draws: torch.Generator = draws,
        ) -> None:  # fmt: skip
            picked = known[torch.randperm(3000, generator=draws)[:300]]
            ids = picked[torch.randint(300, (400,), generator=draws)]
            with tables.within(optimiser.tables):
                module(ids).square().sum().backward()
            optimiser.clip(1.0)
            optimiser.step(0.5)

        with tables.within(optimiser.tables):
            module(known).square().sum().backward()
        optimiser.step(0.5)
        sides.append(step)
    return sides[0], sides[1]


def layer(tokens: int, learns: bool) -> tuple[Work, Work]:
    """A layer's product as torch makes it, and as Headstart does on this processor."""
    from headstart import products

    given = [torch.randn(shape).requires_grad_(learns) for shape in ((tokens, 384), (1536, 384), (1536,))]
    slope = torch.ones(tokens, 1536)

    def both(multiply: Callable[..., Tensor]) -> None:
        with torch.inference_mode(not learns):
            made = multiply(*given)
        if learns:
            torch.autograd.grad(made, given, slope)

    return lambda: both(nn.functional.linear), lambda: both(products.linear)


def pieces() -> Iterator[tuple[str, str, tuple[Work, Work]]]:
    """Name, what it was made in, and both sides."""
    for kind, made in KINDS.items():
        yield "dropout", kind, dropout(made)
    for kind, made in KINDS.items():
        for how, rate, learns in (("", 0.0, True), (", dropout", 0.1, True), (", answers", 0.0, False)):
            for tokens in (12, 20, 48, 128):
                yield f"attention, {tokens} tokens{how}", kind, attention(made, tokens, rate, learns)
    yield "table", "fp32", table()
    for how, learns in (("", True), (", answers", False)):
        for tokens in (20, 150, 640, 1024):
            yield f"layer, {tokens} tokens{how}", "fp32", layer(tokens, learns)


def compare(pairs: int, only: str) -> None:
    """Time all pieces whose name begins so."""
    from timing import halves

    from headstart import heap

    heap.settle()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name, kind, sides in pieces():
        if not name.startswith(only):
            continue
        spent: list[list[float]] = [[], []]
        for number in range(pairs + 3):
            for place in (0, 1) if number % 2 else (1, 0):
                started = time.process_time()
                sides[place]()
                if number >= 3:
                    spent[place].append(1000 * (time.process_time() - started))
        ratios = sorted(torchs / own for torchs, own in zip(*spent, strict=True))
        line = {
            "piece": name, "kind": kind, "bf16_units": halves(), "torch_ms": round(median(spent[0]), 3),
            "own_ms": round(median(spent[1]), 3), "ratio": round(median(ratios), 2),
            "range": [round(ratios[pairs // 10], 2), round(ratios[-1 - pairs // 10], 2)],
        }  # fmt: skip
        with OUT.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def print_table() -> None:
    """The table of the lines."""
    print("| piece | in | torch, ms | Headstart, ms | times as fast |\n| --- | --- | --- | --- | --- |")
    for text in OUT.read_text(encoding="utf-8").splitlines():
        line = json.loads(text)
        low, high = line["range"]
        print(
            f"| {line['piece']} | {line['kind']} | {line['torch_ms']:.2f} | {line['own_ms']:.2f} | "
            f"{line['ratio']:.1f} ({low:.1f} to {high:.1f}) |"
        )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--only", default="", help="pieces whose name begins so")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    print_table() if asked.table else compare(asked.pairs, asked.only)


if __name__ == "__main__":
    main()
