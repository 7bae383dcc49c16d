"""Thousands of wrong and odd requests: no status 5xx, no hang, no growth, and good answers afterwards.

    python benchmarks/serve/fuzz.py runs/tickets runs/digits --requests 10000 --out benchmarks/serve/fuzz.json

Half of the requests are made by schemathesis from the server's own `/openapi.json`, fitting it and not; `unload` is
left out, since a model that is not there is rightly answered with 503. The other half are valid requests of the tensor
protocol, in JSON and in binary, of plain JSON and of embeddings, of which bytes, lengths, headers and values are
changed, at random from a seed, and sent as raw bytes over several connections. Needs `pip install schemathesis`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import struct
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import asking

PATIENCE = 60.0
"""Seconds without an answer that count as a hang."""

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 1e308, "", "\x00", "\ud800", "a" * 5000, [], {}, [[]], [None], {"b64": "a"},
    {"b64": "////"}, "NaN", ["x"] * 300,
)  # fmt: skip


def values(name: str, modality: str, texts: list[str], draws: random.Random) -> tuple[str, dict[str, Any]]:
    """A path and a valid body for it."""
    rows = [draws.choice(texts) for _ in range(draws.randint(1, 4))]
    given: list[Any] = rows if modality == "text" else [{"b64": "iVBORw0KGgo="} for _ in rows]
    flat = rows if modality == "text" else ["iVBORw0KGgo=" for _ in rows]
    kind = draws.randrange(3)
    if kind == 0:
        return f"/predict/{name}", {"rows": given}
    if kind == 1:
        return "/v1/embeddings", {"model": name, "input": flat, "encoding_format": draws.choice(["float", "base64"])}
    tensor = {"name": modality, "shape": [len(flat)], "datatype": "BYTES", "data": flat}
    wanted = [{"name": draws.choice(["prediction", "scores"]), "parameters": {"binary_data": draws.random() < 0.5}}]
    return f"/v2/models/{name}/infer", {"id": "1", "inputs": [tensor], "outputs": wanted}


def changed(value: Any, draws: random.Random) -> Any:
    """A JSON value with one place changed."""
    if draws.random() < 0.25 or not isinstance(value, dict | list) or not value:
        return draws.choice(ODD)
    if isinstance(value, dict):
        key = draws.choice(list(value))
        if draws.random() < 0.15:
            return {name: inner for name, inner in value.items() if name != key}
        return {**value, key: changed(value[key], draws)}
    place = draws.randrange(len(value))
    return [*value[:place], changed(value[place], draws), *value[place + 1 :]]


def spoiled(data: bytes, draws: random.Random) -> bytes:
    """Bytes with some flipped, cut, doubled or put in."""
    found = bytearray(data)
    for _ in range(draws.randint(1, 4)):
        place = draws.randrange(len(found) + 1)
        kind = draws.randrange(4)
        if kind == 0 and place < len(found):
            found[place] ^= 1 << draws.randrange(8)
        elif kind == 1:
            del found[place : place + draws.randint(1, 40)]
        elif kind == 2:
            found[place:place] = found[max(0, place - 30) : place]
        else:
            found[place:place] = draws.randbytes(draws.randint(1, 9))
    return bytes(found)


def binary(name: str, modality: str, texts: list[str], draws: random.Random) -> tuple[str, list[str], bytes]:
    """Path, headers and body of a request in the binary tensor protocol, maybe with wrong lengths."""
    rows = [draws.choice(texts).encode() for _ in range(draws.randint(0, 4))]
    lengths = [len(row) if draws.random() < 0.8 else draws.choice([0, 1, 2**31, 2**32 - 1]) for row in rows]
    data = b"".join(struct.pack("<I", length) + row for length, row in zip(lengths, rows, strict=True))
    size = len(data) if draws.random() < 0.7 else draws.choice([0, -1, 2**40, "4", None])
    tensor = {"name": modality, "shape": [len(rows)], "datatype": "BYTES", "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": draws.random() < 0.5}}).encode()
    stated = str(len(head)) if draws.random() < 0.7 else draws.choice(["0", "-1", "x", str(len(head) - 1), str(2**70)])
    return f"/v2/models/{name}/infer", [f"inference-header-content-length: {stated}"], head + data


def request(models: list[tuple[str, str]], texts: list[str], draws: random.Random) -> tuple[bytes, bool]:
    """The bytes of one HTTP request, and whether its body is shorter than it says."""
    name, modality = draws.choice(models)
    headers = ["host: localhost", f"content-type: {draws.choice(['application/json', 'text/plain', 'image/png', '?'])}"]
    if draws.random() < 0.4:
        path, more, body = binary(name, modality, texts, draws)
        headers += more
    else:
        path, value = values(name, modality, texts, draws)
        for _ in range(draws.randint(0, 2)):
            value = changed(value, draws)
        body = json.dumps(value).encode("utf-8", "surrogatepass")
    if draws.random() < 0.4:
        body = spoiled(body, draws)
    if draws.random() < 0.1:
        headers.append(draws.choice(["x-timeout-ms: 0", "content-encoding: gzip", "x-request-id: \x01", "accept: x"]))
    path = draws.choice([path] * 20 + [path + "/..", path + "%00", path.upper(), path + "?task=x"])
    method = draws.choice(["POST"] * 20 + ["GET", "PUT", "OPTIONS"])
    stated = len(body) if draws.random() < 0.98 else draws.choice([0, 1, 2**50])
    headers += [f"content-length: {stated}", "connection: close"]
    head = f"{method} {path} HTTP/1.1\r\n" + "\r\n".join(headers)
    return head.encode("latin-1") + b"\r\n\r\n" + body, stated > len(body)


async def send(port: int, data: bytes, cut: bool) -> str:
    """The status of the answer; 'closed' where there is none, 'hang' where none came in time."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        if cut:
            writer.write_eof()
        with suppress(OSError):
            await writer.drain()
        async with asyncio.timeout(PATIENCE):
            line = await reader.readline()
            with suppress(OSError):
                await reader.read()
        found = re.match(rb"HTTP/1\.1 (\d{3}) ", line)
        return found[1].decode() if found else "closed"
    except TimeoutError:
        return "hang"
    except OSError:
        return "closed"
    finally:
        writer.close()


async def mutations(
    port: int, models: list[tuple[str, str]], texts: list[str], count: int, seed: int
) -> tuple[Counter[str], list[bytes]]:
    """How often each status came, and the requests that the server failed on."""
    draws, found, wrong = random.Random(seed), Counter[str](), []
    left = iter(range(count))

    async def one() -> None:
        for _ in left:
            data, cut = request(models, texts, draws)
            status = await send(port, data, cut)
            found[status] += 1
            if status == "hang" or status.startswith("5"):
                wrong.append(data)

    await asyncio.gather(*(one() for _ in range(8)))
    return found, wrong


def described(url: str, count: int, number: int) -> tuple[Counter[str], list[str]]:
    """What schemathesis makes of the server's own description."""
    import requests
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st
    from schemathesis import GenerationMode

    schema = schemathesis.openapi.from_url(f"{url}/openapi.json").exclude(path_regex="unload")
    found, wrong, session = Counter[str](), [], requests.Session()
    modes = [schema.as_strategy(generation_mode=mode) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)]

    @seed(number)
    @settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=st.one_of(modes))
    def ask(case: Any) -> None:
        try:
            status = str(case.call(base_url=url, session=session, timeout=PATIENCE).status_code)
        except requests.Timeout:
            status = "hang"
        except requests.RequestException:
            status = "closed"
        found[status] += 1
        if status == "hang" or status.startswith("5"):
            wrong.append(f"{status}: {case.as_curl_command()}"[:2000])

    ask()
    return found, wrong


def fuzz(bundles: list[str], texts: list[str], count: int, seed: int) -> dict[str, Any]:
    import requests

    with asking.headstart(*bundles) as server:
        port, url = server.port, f"http://127.0.0.1:{server.port}"
        models = [(each["name"], each["modality"]) for each in requests.get(f"{url}/models").json()["models"]]
        text = next(name for name, modality in models if modality == "text")

        def good() -> Any:
            return requests.post(f"{url}/predict/{text}", json=texts[:4], timeout=PATIENCE).json()["predictions"]

        before, memory, statuses, failed = good(), [server.memory()["VmRSS"]], Counter[str](), []
        for part in range(5):
            found, wrong = asyncio.run(mutations(port, models, texts, count // 10, seed + part))
            statuses += found
            failed += [each.decode("latin-1")[:2000] for each in wrong]
            found, said = described(url, count // 10, seed + part)
            statuses += found
            failed += said
            memory.append(server.memory()["VmRSS"])
            print(dict(statuses), [round(each) for each in memory], len(failed), flush=True)
        same = all(
            abs(a - b) < 1e-4 if isinstance(a, float) else a == b
            for one, other in zip(before, good(), strict=True)
            for a, b in zip(one.values(), other.values(), strict=True)
        )
        waiting = re.findall(r"^headstart_waiting_rows\{.*\} (.*)$", requests.get(f"{url}/metrics").text, re.MULTILINE)
        return {
            "requests": sum(statuses.values()), "statuses": dict(sorted(statuses.items())), "failed": failed,
            "memory_mb": [round(each, 1) for each in memory], "good_answers_the_same": same,
            "rows_left_waiting": sum(map(float, waiting)), "alive": server.process.poll() is None,
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", help="one of them of texts")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    texts = ["where is my parcel", "I want my money back", "naïve 日本語 🙂", "a" * 400]
    found = fuzz(asked.bundles, texts, asked.requests, asked.seed)
    print(json.dumps({**found, "failed": found["failed"][:5]}, indent=1))
    if asked.out is not None:
        asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
