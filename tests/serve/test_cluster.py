"""The server behind Ray Serve: the same answers and refusals, several replicas, a quiet end."""

from __future__ import annotations

import signal
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

import headstart as hs
from headstart.cli import run
from headstart.serve import cluster, keys
from serving import process


def ray_serve() -> bool:
    """Whether it can be imported; asked in another process, since it warns about itself."""
    done = subprocess.run([sys.executable, "-c", "import ray.serve"], capture_output=True, check=False)
    return done.returncode == 0


def test_engines_and_replicas_are_checked(text_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", str(text_bundle), "--engine", "spark"]) == 2
    assert "expected --engine local or ray, received 'spark'" in capsys.readouterr().err
    assert run(["serve", str(text_bundle), "--replicas", "2"]) == 2
    assert "received --replicas 2 for one process: add --engine ray" in capsys.readouterr().err


def test_without_ray_serve_it_says_what_to_install(
    text_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run(["serve", str(text_bundle), "--engine", "ray", "--port", "0"]) == 2
    assert "--engine ray needs ray, which is not installed: pip install 'headstart[ray]'" in capsys.readouterr().err


def test_a_folder_that_is_no_bundle_is_said_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "_libraries", lambda: (None, None))
    assert run(["serve", str(tmp_path), "--engine", "ray", "--port", "0"]) == 2
    assert "holds no bundle.json" in capsys.readouterr().err


@pytest.mark.slow
def test_replicas_answer_as_one_server_and_leave_quietly(
    text_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not ray_serve():
        pytest.skip("needs Ray Serve: pip install 'headstart[ray]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    path = tmp_path / "keys.json"
    web = {"authorization": f"Bearer {keys.make(path, 'web', 'predict')}"}
    boss = {"authorization": f"Bearer {keys.make(path, 'boss', 'admin')}"}
    expected = hs.load(text_bundle).predict(["where is my parcel"])
    options = ("--name", "tickets", "--engine", "ray", "--replicas", "2", "--keys", str(path), "--max-rows", "300")
    with process(str(text_bundle), *options) as (started, url):
        with httpx.Client(base_url=url, timeout=60, headers=web) as client:
            for _ in range(6):
                response = client.post("/predict/tickets", json=["where is my parcel"], headers={"x-request-id": "a-1"})
                assert response.json()["predictions"][0]["prediction"] == expected[0]
                assert response.headers["x-request-id"] == "a-1"
            assert client.post("/predict/tickets", json=["a"], headers={"authorization": ""}).status_code == 401
            response = client.post("/predict/tickets", json=[3])
            assert (response.status_code, response.json()["error"]) == (
                400,
                "row 0: expected a text, received a number",
            )
            assert client.post("/predict/tickets", json=["a"] * 301).status_code == 413
            assert client.get("/v2/health/ready", headers={"host": "elsewhere.org"}).status_code == 421
            assert client.post("/v2/repository/models/tickets/load").status_code == 403
            response = client.post("/v2/repository/models/tickets/load", headers=boss)
            assert response.status_code == 501 and "serve a registry, which all follow" in response.json()["error"]
        answers: list[Any] = []
        rows = {"rows": ["where is my parcel " * 20] * 150}

        def call() -> None:
            answers.append(httpx.post(f"{url}/predict/tickets", json=rows, headers=web, timeout=60))

        callers = [threading.Thread(target=call) for _ in range(3)]
        for caller in callers:
            caller.start()
        time.sleep(0.3)
        started.send_signal(signal.SIGTERM)
        for caller in callers:
            caller.join()
        _, err = started.communicate(timeout=120)
    assert started.returncode == 0, err[-2000:]
    assert [answer.status_code for answer in answers] == [200] * 3, [answer.text[:200] for answer in answers]
    assert all(len(answer.json()["predictions"]) == 150 for answer in answers)


@pytest.mark.slow
def test_replicas_follow_a_registry_over_https(
    text_bundle: Path, other_bundle: Path, registry: Path, certificate: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if not ray_serve():
        pytest.skip("needs Ray Serve: pip install 'headstart[ray]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    called = {}
    for bundle, alias in ((text_bundle, "champion"), (other_bundle, "challenger")):
        made = hs.register(bundle, "tickets", alias=alias, registry=registry)
        called[made.version] = made.bundle[:12]
    cert, key = certificate
    options = ("--poll", "0.2", "--engine", "ray", "--tls-cert", str(cert), "--tls-key", str(key))
    with process("--registry", str(registry), *options) as (started, url):
        assert url.startswith("https://")
        with httpx.Client(base_url=url, timeout=60, verify=ssl.create_default_context(cafile=str(cert))) as client:

            def served() -> str:
                response = client.post("/predict/tickets", json=["where is my parcel"])
                assert response.status_code == 200, response.text
                return str(response.json()["version"])

            assert served() == called[1]
            hs.promote("tickets", registry=registry, force="for the test")
            end = time.monotonic() + 60
            while served() != called[2]:
                assert time.monotonic() < end, "the replica does not follow"
                time.sleep(0.1)
            assert hs.remove("tickets", keep=0, registry=registry).kept[1] == "rollback goes back to it"
        started.send_signal(signal.SIGTERM)
        started.communicate(timeout=120)
    assert started.returncode == 0
