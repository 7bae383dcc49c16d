"""Starting and stopping: where a server may listen, what it needs for that, and how it leaves."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from headstart.cli import run
from headstart.errors import SpecError
from headstart.serve import keys
from headstart.serve.limits import Limits
from headstart.serve.run import Place
from serving import process


@pytest.mark.parametrize(("host", "local"), [
    ("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.9.9.9", True),
    ("0.0.0.0", False), ("::", False), ("192.168.1.5", False), ("example.org", False), ("", False),
])  # fmt: skip
def test_listening_elsewhere_needs_keys(host: str, local: bool) -> None:
    place = Place(host=host)
    assert place.local == local == (place.hosts is not None)
    if local:
        place.check()
    else:
        with pytest.raises(
            SpecError, match="can be reached from other machines, so API keys are needed: make one with"
        ):
            place.check()
    Place(host=host, keys=Path("keys.json")).check()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--host", "0.0.0.0"], "'0.0.0.0' can be reached from other machines, so API keys are needed"),
        (["--tls-cert", "cert.pem"], "--tls-cert and --tls-key belong together"),
        (["--tls-cert", "no.pem", "--tls-key", "no.pem"], "cannot use 'no.pem' with 'no.pem' for TLS: No such file"),
        (["--keys", "no.json"], "cannot read the keys in 'no.json'"),
        (["--name", "a", "--name", "b"], "expected a --name for each of the 1 bundles, received 2"),
        (["--name", "a/b"], "'a/b' cannot be the name of a model"),
        (["--max-rows", "9", "--queue", "8"], "queue_rows (8) is below rows (9)"),
        (["--port", "0"], "there is no bundle at"),
    ],
)
def test_what_cannot_be_served_is_one_sentence_and_status_two(
    tmp_path: Path, arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", str(tmp_path / "nothing"), *arguments]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err and captured.err.count("\n") == 1


def test_a_port_that_is_taken_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run(["serve", str(tmp_path / "nothing"), "--port", str(port)]) == 2
    assert f"cannot listen on 127.0.0.1 port {port}: " in capsys.readouterr().err


def test_an_answer_does_not_wait_for_an_acknowledgement() -> None:
    """asyncio only turns Nagle's algorithm off for a connection whose socket says that it is TCP."""
    with Place(port=0).bind() as listening, socket.socket() as client:
        listening.listen()
        client.connect(listening.getsockname())
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.proto == socket.IPPROTO_TCP


@pytest.mark.parametrize("name", ["body_bytes", "rows", "timeout", "batch_rows", "pixels"])
def test_limits_that_let_nothing_through_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match=f"expected {name} above 0, received 0"):
        Limits(**{name: 0})
    with pytest.raises(SpecError, match="expected delay_ms above 0, received -1"):
        Limits(delay_ms=-1)
    Limits(delay_ms=0)


@pytest.mark.slow
def test_a_server_answers_what_it_has_before_it_leaves(text_bundle: Path) -> None:
    """SIGTERM while requests wait: every one of them is answered, then the process ends with status 0."""
    with process(str(text_bundle), "--batch", "1", "--name", "tickets") as (started, url):
        answers: list[Any] = []
        rows = {"rows": ["where is my parcel " * 20] * 200}

        def call() -> None:
            answers.append(httpx.post(f"{url}/predict/tickets", json=rows, timeout=60))

        assert httpx.get(f"{url}/v2/health/ready").status_code == 200
        callers = [threading.Thread(target=call) for _ in range(2)]
        for caller in callers:
            caller.start()
        while 'headstart_waiting_rows{model="tickets"} 0' in httpx.get(f"{url}/metrics").text:
            time.sleep(0.005)
        started.send_signal(signal.SIGTERM)
        for caller in callers:
            caller.join()
        out, err = started.communicate(timeout=60)
    assert started.returncode == 0 and out == ""
    assert [(answer.status_code, len(answer.json()["predictions"])) for answer in answers] == [(200, 200)] * 2
    events = [json.loads(line)["event"] for line in err.splitlines()]
    assert events[0] == "listening" and events[-1] == "stopped"
    assert events.index("stopping") < len(events) - 2, "the answers came after the signal"


@pytest.mark.slow
def test_https_with_keys_on_every_address(text_bundle: Path, certificate: tuple[Path, Path], tmp_path: Path) -> None:
    import ssl

    cert, key = certificate
    secret = keys.make(tmp_path / "keys.json", "web", "predict")
    arguments = ("--host", "0.0.0.0", "--keys", str(tmp_path / "keys.json"), "--tls-cert", str(cert), "--tls-key")
    with process(str(text_bundle), *arguments, str(key)) as (_, url):
        address = url.replace("0.0.0.0", "127.0.0.1") + "/predict/tickets"
        assert address.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(verify=trusted) as client:
            assert client.post(address, json=["a"]).status_code == 401
            response = client.post(address, json=["a"], headers={"authorization": f"Bearer {secret}"})
            assert response.status_code == 200


def test_a_server_may_open_a_file_more_for_each_model(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    from headstart.serve import run as running

    given: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, both: given.append(both))
    for limits in ((256, resource.RLIM_INFINITY), (1024, 4096), (1024, 1024), (resource.RLIM_INFINITY,) * 2):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, limits=limits: limits)
        running._open_more(100)
    assert given == [(356, resource.RLIM_INFINITY), (1124, 4096)], "no more than the system allows"
