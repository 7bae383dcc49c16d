"""API keys: shown once, hashed at rest, with a scope, taken away while the server runs."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from headstart.cli import run
from headstart.errors import SpecError
from headstart.serve import keys
from serving import Client, ask


def test_a_file_of_keys_holds_no_key(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "keys.json"
    secrets = [keys.make(path, "web", "predict"), keys.make(path, "boss", "admin")]
    text = path.read_text()
    assert all(secret.startswith("hsk_") and len(secret) > 40 and secret not in text for secret in secrets)
    assert all(secret.removeprefix("hsk_") not in text for secret in secrets)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert [path.name for path in path.parent.iterdir()] == ["keys.json"]
    ring = keys.Ring(path)
    found = [ring.find(secret) for secret in secrets]
    assert [(key.name, key.scope) for key in found if key] == [("web", "predict"), ("boss", "admin")]
    assert ring.find(None) is ring.find("") is ring.find("hsk_x") is ring.find("\ud800") is None


def test_scopes() -> None:
    assert keys.Key("a", "admin", "").may("predict") and keys.Key("a", "admin", "").may("admin")
    assert keys.Key("a", "predict", "").may("predict") and not keys.Key("a", "predict", "").may("admin")


def test_a_key_that_is_taken_away_opens_nothing_any_more(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first, second = keys.make(path, "first", "predict"), keys.make(path, "second", "predict")
    ring = keys.Ring(path)
    keys.remove(path, "first")
    assert ring.find(first) is None and ring.find(second) is not None
    path.write_text("{")
    assert ring.find(second) is None
    path.unlink()
    assert ring.find(second) is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "cannot read the keys in .*keys.json': No such file"),
        ("{", "is not a file of API keys: make one with 'headstart key"),
        ("[]", "is not a file of API keys"),
        ('{"keys": [{"name": "a"}]}', "is not a file of API keys"),
        ('{"keys": [{"name": "a", "scope": "all", "sha256": ""}]}', "a key with an unknown scope"),
        ('{"keys": []}', "holds no keys: make one with"),
    ],
)
def test_a_file_that_is_not_one_of_keys_is_refused(tmp_path: Path, text: str | None, sentence: str) -> None:
    if text is not None:
        (tmp_path / "keys.json").write_text(text)
    with pytest.raises(SpecError, match=sentence):
        keys.Ring(tmp_path / "keys.json")


def test_the_verb_prints_a_key_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys.json"
    assert run(["key", str(path), "--name", "web"]) == 0
    secret = capsys.readouterr().out.strip()
    assert keys.Ring(path).find(secret) is not None
    for arguments, sentence in (
        (["--name", "web"], "already has a key called 'web'"),
        (["--name", " "], "a key needs a name"),
        (["--name", "x", "--scope", "all"], "expected the scope predict or admin, received 'all'"),
        (["--name", "x", "--remove"], "has no key called 'x'; it has web"),
    ):
        assert run(["key", str(path), *arguments]) == 2
        assert sentence in capsys.readouterr().err
    assert run(["key", str(path), "--name", "web", "--remove"]) == 0
    assert json.loads(path.read_text()) == {"keys": []}


def test_every_route_asks_for_the_scope_it_needs(text_bundle: Path, tmp_path: Path) -> None:
    from headstart.serve.app import ROUTES

    path = tmp_path / "keys.json"
    user, boss = keys.make(path, "user", "predict"), keys.make(path, "boss", "admin")

    async def test(client: Client) -> None:
        for method, route, _, scope in ROUTES:
            address = route.replace("{name}", "nothing").replace("{version}", "1")
            for given, may in ((None, scope is None), (user, scope != "admin"), (boss, True)):
                for headers in ({"authorization": f"Bearer {given}"}, {"x-api-key": f"{given}"}) if given else ({},):
                    response = await client.http.request(method, address, headers=headers)
                    passed = response.status_code not in (401, 403)
                    assert passed == may, (method, route, given)
                    if not passed:
                        assert response.status_code == (403 if given else 401)
        response = await client.get("/models")
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"] == "an API key is needed: send it as 'Authorization: Bearer KEY'"
        response = await client.get("/models", headers={"authorization": "Bearer hsk_wrong"})
        assert response.json()["error"].startswith("an API key is not known")
        assert (await client.get("/")).status_code == 200
        assert "tickets" not in (await client.get("/")).text
        keys.remove(path, "user")
        assert (await client.get("/models", headers={"x-api-key": user})).status_code == 401
        assert {record.get("key") for record in client.logged("request")} == {None, "user", "boss"}
        assert not any(secret in line for line in client.lines for secret in (user, boss))

    ask({"tickets": text_bundle}, test, keys=path)
