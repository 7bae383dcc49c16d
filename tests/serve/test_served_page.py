"""The page in a real browser: it asks, explains, lists the routes, and its own policy lets it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("captum")

from headstart.serve import keys
from serving import process

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs Chromium")]

STEPS = {
    "text": """$("text").value = "where is my parcel"; $("form").requestSubmit();""",
    "picture": """const bytes = Uint8Array.from(atob("%s"), one => one.charCodeAt(0)), bag = new DataTransfer();
        bag.items.add(new File([bytes], "a.png", { type: "image/png" })); $("file").files = bag.files;
        $("form").requestSubmit();""",
}

WAIT = """
(async () => {
  const pause = () => new Promise(go => setTimeout(go, 100));
  const until = async found => { for (let i = 0; i < 300 && !found(); i++) await pause(); };
  try {
    if (KEY) {
      await until(() => !$("keybox").hidden);
      $("key").value = KEY; $("key").dispatchEvent(new Event("change"));
    }
    await until(() => !$("go").disabled);
    FIRST
    await until(() => document.querySelector("button.quiet"));
    if (!document.querySelector("button.quiet").disabled) document.querySelector("button.quiet").click();
    await until(() => document.querySelector(".why").children.length);
    $("routes").open = true;
    await until(() => $("table").rows.length);
  } catch (error) { fail(String(error)); }
  document.title = "done";
})();
"""


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The page's HTML after these steps, from a server whose page takes them itself: its policy counts them in."""

    def run(folder: Path, first: str, *arguments: str, key: str = "") -> str:
        from headstart.serve import app

        source = Path(app.__file__).parent / "templates" / "page.html"
        text = source.read_text(encoding="utf-8")
        script = WAIT.replace("FIRST", first).replace("KEY", f'"{key}"' if key else '""')
        # A copy of the package, so that the page with the steps has a policy with its own digest.
        copy = tmp_path / "copy" / "headstart"
        shutil.copytree(Path(app.__file__).parents[1], copy, ignore=shutil.ignore_patterns("__pycache__"))
        (copy / "serve" / "templates" / "page.html").write_text(
            text.replace("</script>", script + "</script>"), "utf-8"
        )
        with process(str(folder), *arguments, source=copy.parent) as (_, url):
            command: list[Any] = [
                BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=60000", "--dump-dom", url,
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert "<title>done</title>" in done.stdout, done.stderr[-2000:]
        shown = re.search(r'<div class="error" id="error"[^>]*>(.*?)</div>', done.stdout)
        assert shown is not None and not shown[1], shown
        return done.stdout

    return run


def test_a_text_is_answered_and_its_words_coloured(text_bundle: Path, look: Callable[..., str]) -> None:
    html = look(text_bundle, STEPS["text"], "--name", "tickets")
    told = re.search(r'<div class="told">(.*?)</div>', html)
    assert told is not None
    # Browsers write attributes in the order in which they were set, or not.
    words = re.findall(r"<span ([^>]+)>(\w+)</span>", told[1])
    assert [word for _, word in words] == ["where", "is", "my", "parcel"]
    for attributes, _ in words:
        red, weight = re.search(r"rgba\((\d+),", attributes), re.search(r'title="([+-]?[\d.]+)"', attributes)
        assert red is not None and weight is not None
        assert (red[1] == "214") == weight[1].startswith("+")
    assert "the weights add up to the difference" in html and "/predict/tickets" in html


def test_a_picture_gets_a_heat_map(image_bundle: Path, look: Callable[..., str]) -> None:
    import base64

    from serving import encoded, picture

    html = look(image_bundle, STEPS["picture"] % base64.b64encode(encoded(picture(20))).decode(), "--name", "shades")
    assert re.search(r'<canvas width="320" height="320" role="img"', html)
    assert "what is lost when a part is blurred" in html


def test_with_keys_the_routes_are_listed_and_the_models_named(
    text_bundle: Path, look: Callable[..., str], tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    html = look(
        text_bundle, STEPS["text"], "--name", "tickets", "--keys", str(path), key=keys.make(path, "a", "predict")
    )
    assert "<td>/predict/tickets</td>" in html and "<td>/explain/{name}</td>" in html
    assert 'href="blob:' in html, "the link for programs holds what the key may see"
