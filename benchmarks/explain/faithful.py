"""Is what `explain` calls important what the model answers by? And do explanations hold up those who only ask?

    headstart fit DATA/tweeteval_emotion/train.csv --test DATA/tweeteval_emotion/test.csv --out EMOTION
    headstart fit DATA/hymenoptera/train --test DATA/hymenoptera/validation --out BEES
    python benchmarks/explain/faithful.py texts EMOTION --data-root DATA       # appends to faithful.jsonl
    python benchmarks/explain/faithful.py pictures BEES --data-root DATA
    python benchmarks/explain/faithful.py beside EMOTION BEES --data-root DATA
    python benchmarks/explain/faithful.py --table

It needs captum (`pip install 'headstart[explain]'`). A deletion test: the 20 % of a row that a method gives the largest
weights are hidden, and the probability of the label that was predicted is taken again. The same share hidden at random
(mean of `DRAWS` draws) is what it has to beat; both on the same row. The network is asked by this script itself.

`texts`: 60 test rows of tweet emotion of at least 5 words. Words are hidden in two ways: cut out of the text, or each
of their tokens made padding, which is what Integrated Gradients compares with. Beside `explain`: hiding each word in
turn (its loss is its weight), and one gradient times the way instead of an integral.
`pictures`: 30 pictures of hymenoptera's validation folder. 10 of 7 by 7 parts are hidden: blurred as `explain` does, or
made the picture's mean colour. Beside `explain` (each part blurred in turn): Integrated Gradients of the pixels, from
the blurred picture, 32 and 128 steps, added up to parts; and its single pixels, against single pixels at random. How
far its weights are from adding up is noted too.
`beside`: p50 of one client that asks `/predict` while two others ask `/explain`, and while nobody does, in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "serve"))
import asking  # noqa: E402

import headstart as hs  # noqa: E402
from headstart.encoded import Encoded  # noqa: E402
from headstart.explanation.attribution import BLUR, PARTS  # noqa: E402
from headstart.explanation.picture import blurred  # noqa: E402
from headstart.explanation.words import read  # noqa: E402
from headstart.values import Batch  # noqa: E402

OUT = HERE / "faithful.jsonl"
SHARE = 0.2
DRAWS = 5
TEXTS, PICTURES = 60, 30
SECONDS, PAIRS = 6.0, 6


class Asked:
    """One bundle as a function of the numbers that its network gets. Scores are those that predictions give."""

    def __init__(self, bundle: hs.Bundle) -> None:
        self.bundle = bundle
        bundle.model.eval()

    def batch(self, row: Any) -> Batch:
        """The row alone, encoded."""
        return Encoded.of(self.bundle.modality, self.bundle.model.backbone, [row]).batch([0])

    def scores(self, batch: Batch, **inputs: Tensor) -> Tensor:
        """(n,K) of n rows that differ from `batch` in `inputs`, at most 16 at once."""
        (count,) = {len(value) for value in inputs.values()}
        found = []
        for first in range(0, count, 16):
            some = {name: value[first : first + 16] for name, value in inputs.items()}
            rows = min(16, count - first)
            rest = {name: value.expand(rows, *value.shape[1:]) for name, value in batch.inputs.items()}
            weight, origin, row = (each.expand(rows) for each in (batch.weight, batch.origin, batch.row))
            outputs = self.bundle.model(Batch({**rest, **some}, None, weight, origin, row))[1]
            found.append(self.bundle.task.scores(outputs, self.bundle.temperature))
        return torch.cat(found)


def top(weights: Sequence[float], count: int) -> list[int]:
    """The places of the largest weights."""
    return sorted(range(len(weights)), key=lambda place: -weights[place])[:count]


def drawn(places: int, count: int, seed: int) -> list[list[int]]:
    """As many places at random, several times."""
    draws = random.Random(seed)
    return [draws.sample(range(places), count) for _ in range(DRAWS)]


# Texts --------------------------------------------------------------------------------------------------


def text_row(asked: Asked, text: str, seed: int) -> dict[str, Any] | None:
    """Drops of the predicted probability by arm and way of hiding; None for a text that is too short or cut."""
    start = time.perf_counter()
    found = hs.explain(asked.bundle, text)
    seconds = time.perf_counter() - start
    words = [(s, e) for s, e, _ in found.words]
    if len(words) < 5 or not found.whole:
        return None
    backbone: Any = asked.bundle.model.backbone
    batch, pieces = asked.batch(text), read(text, backbone)
    spans, shown = pieces.spans, pieces.text
    label = list(asked.bundle.task.labels).index(found.label)

    def padded(hidden: Sequence[Sequence[int]]) -> list[float]:
        ids = batch.inputs["input_ids"].repeat(len(hidden), 1)
        for row, places in enumerate(hidden):
            gone = {words[place] for place in places}
            ids[row, [at for at, span in enumerate(spans) if span in gone]] = backbone.preprocessing["pad_id"]
        with torch.no_grad():
            return [float(each) for each in asked.scores(batch, input_ids=ids)[:, label]]

    def cut(hidden: Sequence[Sequence[int]]) -> list[float]:
        found = []
        for places in hidden:
            kept = [shown[a:b] for place, (a, b) in enumerate(words) if place not in places]
            one = asked.batch(" ".join(kept))
            with torch.no_grad():
                found.append(float(asked.scores(one, input_ids=one.inputs["input_ids"])[0, label]))
        return found

    count = max(1, round(SHARE * len(words)))
    full = padded([[]])[0]
    alone = padded([[place] for place in range(len(words))])
    arms = {
        "explain": [weight for _, _, weight in found.words],
        "hide each word": [full - score for score in alone],
        "one gradient": [weight for _, _, weight in hs.explain(asked.bundle, text, steps=1).words],
    }
    chosen, chance = [top(weights, count) for weights in arms.values()], drawn(len(words), count, seed)
    told: dict[str, Any] = {"words": len(words), "hidden": count, "score": full, "seconds": round(seconds, 3)}
    for way, hide in (("cut out", cut), ("padding", padded)):
        scores = hide([*chosen, *chance])
        told[way] = {name: full - score for name, score in zip(arms, scores, strict=False)}
        told[way]["random"] = full - mean(scores[len(arms) :])
    return told


def texts(folder: Path, data: Path) -> Iterator[dict[str, Any]]:
    """The rows of the file of figures."""
    asked, done = Asked(hs.load(folder, report=False)), 0
    for number, (text,) in enumerate(asking.column(data / "tweeteval_emotion" / "test.csv", "text")):
        told = text_row(asked, text, number)
        if told is not None:
            yield {"set": "tweet emotion", "row": number, **told}
            done += 1
        if done == TEXTS:
            return


# Pictures -----------------------------------------------------------------------------------------------


def integrated(asked: Asked, batch: Batch, away: Tensor, label: int, steps: int) -> Tensor:
    """Integrated Gradients of the pixels (C,H,W) from `away`, by captum."""
    from captum.attr import IntegratedGradients

    def score(pixels: Tensor) -> Tensor:
        return asked.scores(batch, pixels=pixels)

    found: Tensor = IntegratedGradients(score).attribute(
        batch.inputs["pixels"], baselines=away, target=label, n_steps=steps, internal_batch_size=8
    )
    return found.detach()[0]


def picture_row(asked: Asked, path: Path, seed: int, most: int) -> dict[str, Any]:
    """Drops of the predicted probability by arm and way of hiding. most: steps of the larger integral."""
    start = time.perf_counter()
    found = hs.explain(asked.bundle, path)
    took = {"explain": time.perf_counter() - start}
    assert found.heat is not None
    batch = asked.batch(path)
    pixels = batch.inputs["pixels"]
    label = list(asked.bundle.task.labels).index(found.label)
    edges = [torch.arange(size) * PARTS // size for size in pixels.shape[2:]]
    parts = edges[0][:, None] * PARTS + edges[1][None]
    soft = blurred(pixels[0].permute(1, 2, 0).numpy(), BLUR).to(pixels)
    ways = {"blurred": soft, "mean colour": pixels.mean((2, 3), keepdim=True).expand_as(pixels)}
    with torch.no_grad():
        full, empty = (float(each) for each in asked.scores(batch, pixels=torch.cat([pixels, soft]))[:, label])
    heats, missed = {"explain": found.heat.ravel().tolist()}, {}
    fine = torch.zeros(0)
    for steps in (32, most):
        start = time.perf_counter()
        fine = integrated(asked, batch, soft, label, steps)
        took[f"pixels {steps}"] = time.perf_counter() - start
        flat = fine.sum(0)
        heats[f"pixels {steps}"] = [float(flat[parts == part].sum()) for part in range(PARTS**2)]
        error = abs(float(fine.sum()) - (full - empty))
        missed[str(steps)] = {
            "of_difference": error / abs(full - empty), "of_sizes": error / float(flat.abs().sum()),
            "of_parts": error / sum(map(abs, heats[f"pixels {steps}"])),
        }  # fmt: skip
    count = round(SHARE * PARTS**2)
    masks = [torch.isin(parts, torch.tensor(top(heat, count))) for heat in heats.values()]
    masks += [torch.isin(parts, torch.tensor(places)) for places in drawn(PARTS**2, count, seed)]
    single, area = fine.sum(0).flatten(), round(SHARE * parts.numel())
    scattered = [single.topk(area).indices]
    draws = torch.Generator().manual_seed(seed)
    scattered += [torch.randperm(parts.numel(), generator=draws)[:area] for _ in range(DRAWS)]
    for places in scattered:
        masks.append(torch.zeros(parts.numel(), dtype=torch.bool).index_fill(0, places, True).view_as(parts))
    told: dict[str, Any] = {"score": full, "baseline": empty, "missed": missed}
    told["seconds"] = {name: round(seconds, 2) for name, seconds in took.items()}
    for way, hidden in ways.items():
        with torch.no_grad():
            shown = torch.cat([torch.where(mask, hidden, pixels) for mask in masks])
            scores = asked.scores(batch, pixels=shown)[:, label].tolist()
        drops = [full - score for score in scores]
        told[way] = dict(zip(heats, drops, strict=False))
        told[way]["random"] = mean(drops[len(heats) : len(heats) + DRAWS])
        told[way]["single pixels"] = drops[len(heats) + DRAWS]
        told[way]["random pixels"] = mean(drops[len(heats) + DRAWS + 1 :])
    return told


def pictures(folder: Path, data: Path) -> Iterator[dict[str, Any]]:
    """The rows of the file of figures."""
    asked = Asked(hs.load(folder, report=False))
    paths = sorted((data / "hymenoptera" / "validation").glob("*/*.jpg"))
    for number, path in enumerate(random.Random(0).sample(paths, PICTURES)):
        yield {"set": "hymenoptera", "row": path.name, **picture_row(asked, path, number, 128)}


# Beside those who only ask ------------------------------------------------------------------------------


def beside(folder: Path, data: Path) -> Iterator[dict[str, Any]]:
    """p50 of `/predict` with and without two clients at `/explain`, in turn."""
    name, rows = folder.resolve().name, bodies(folder, data)
    with asking.headstart(str(folder)) as running:

        async def phase(explaining: bool) -> tuple[list[float], int]:
            over, took, made = asyncio.Event(), [], 0

            async def explain(seed: int) -> None:
                nonlocal made
                draws, line = random.Random(seed), await asyncio.open_connection("127.0.0.1", running.port)
                while not over.is_set():
                    status, answer = await asking.send(*line, f"/explain/{name}", draws.choice(rows))
                    assert status == 200, answer
                    made += 1
                line[1].close()

            others = [asyncio.create_task(explain(seed)) for seed in range(2 if explaining else 0)]
            await asyncio.sleep(0.5)
            draws, line = random.Random(9), await asyncio.open_connection("127.0.0.1", running.port)
            stop = time.perf_counter() + SECONDS
            while time.perf_counter() < stop:
                start = time.perf_counter()
                status, answer = await asking.send(*line, f"/predict/{name}", draws.choice(rows))
                took.append(time.perf_counter() - start)
                assert status == 200, answer
            line[1].close()
            over.set()
            await asyncio.gather(*others)
            return took, made

        asyncio.run(phase(True))
        for pair in range(PAIRS):
            told: dict[str, Any] = {"set": f"beside {folder.resolve().name}", "pair": pair}
            for explaining in (False, True) if pair % 2 else (True, False):
                took, made = asyncio.run(phase(explaining))
                key = "explaining" if explaining else "quiet"
                told[key] = {"p50_ms": round(1000 * median(took), 2), "requests": len(took), "explained": made}
            yield told


def bodies(folder: Path, data: Path) -> list[bytes]:
    """Requests of one row each, for a bundle of texts or pictures."""
    import base64

    if json.loads((folder / "bundle.json").read_text(encoding="utf-8"))["modality"] == "text":
        found = asking.column(data / "tweeteval_emotion" / "test.csv", "text")[:TEXTS]
        return [json.dumps([text]).encode() for (text,) in found]
    paths = sorted((data / "hymenoptera" / "validation").glob("*/*.jpg"))[:: 153 // PICTURES]
    return [json.dumps([{"b64": base64.b64encode(path.read_bytes()).decode()}]).encode() for path in paths]


# The table ----------------------------------------------------------------------------------------------


def interval(values: Sequence[float]) -> str:
    """The mean, with the 95 % interval of a bootstrap over rows."""
    draws = np.random.default_rng(0)
    means = np.sort([draws.choice(values, len(values)).mean() for _ in range(2000)])
    return f"{mean(values):+.3f} ({means[50]:+.3f} to {means[1949]:+.3f})"


def table(lines: list[dict[str, Any]]) -> Iterator[str]:
    """Lines of markdown."""
    yield "| set | hidden by | what is hidden | drop | random drop | difference, paired | rows where it drops more |"
    yield "| --- | --- | --- | ---: | ---: | --- | ---: |"
    for name, ways in (("tweet emotion", ("cut out", "padding")), ("hymenoptera", ("blurred", "mean colour"))):
        rows = [line for line in lines if line["set"] == name]
        for way in ways if rows else ():
            for arm in rows[0][way]:
                if arm.startswith("random"):
                    continue
                other = "random pixels" if arm == "single pixels" else "random"
                drops, chance = [row[way][arm] for row in rows], [row[way][other] for row in rows]
                pairs = [a - b for a, b in zip(drops, chance, strict=True)]
                won = sum(each > 0 for each in pairs)
                yield (
                    f"| {name} | {way} | {arm} | {mean(drops):.3f} | {mean(chance):.3f} | {interval(pairs)} "
                    f"| {won} of {len(rows)} |"
                )
        for way in ways if rows else ():
            for arm in rows[0][way]:
                if arm != "explain" and not arm.startswith("random"):
                    pairs = [row[way]["explain"] - row[way][arm] for row in rows]
                    yield f"{name}, {way}: explain against {arm} {interval(pairs)}"
        if rows and "missed" in rows[0]:
            for steps in rows[0]["missed"]:
                for what in rows[0]["missed"][steps]:
                    found = [row["missed"][steps][what] for row in rows]
                    yield f"pixels, {steps} steps: error {median(found):.2%} {what} (median); " + (
                        f"{sum(each <= 0.02 for each in found)} of {len(rows)} within 2 %"
                    )
            for arm in rows[0]["seconds"]:
                yield f"{arm}: {median(row['seconds'][arm] for row in rows):.1f} s a picture"
    for name in sorted({line["set"] for line in lines if line["set"].startswith("beside")}):
        pairs = [line for line in lines if line["set"] == name]
        both = [(line["explaining"]["p50_ms"], line["quiet"]["p50_ms"]) for line in pairs]
        yield f"{name}: p50 {median(a for a, _ in both):.1f} ms against {median(b for _, b in both):.1f}, ratio " + (
            f"{asking.ratio(both)}; {sum(line['explaining']['explained'] for line in pairs)} explanations"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["texts", "pictures", "beside"], nargs="?")
    parser.add_argument("bundles", nargs="*", type=Path)
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("HEADSTART_DATA", "../shared/data")))
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for folder in asked.bundles:
        made = {"texts": texts, "pictures": pictures, "beside": beside}[asked.verb]
        with OUT.open("a", encoding="utf-8") as file:
            for line in made(folder, asked.data_root):
                file.write(json.dumps(line) + "\n")
                file.flush()
                print(line, flush=True)
    if asked.table:
        print("\n".join(table([json.loads(line) for line in OUT.read_text(encoding="utf-8").splitlines()])))


if __name__ == "__main__":
    main()
