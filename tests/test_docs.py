"""What the pages say is so: commands parse, keys exist, links lead somewhere, the worked example trains."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import headstart as hs
from headstart import catalog
from headstart.cli import app
from headstart.errors import MethodError
from headstart.spec import MethodSpec, Spec

REPO = Path(__file__).resolve().parent.parent
PAGES = sorted([REPO / "README.md", REPO / "CONTRIBUTING.md", *(REPO / "docs").glob("*.md")])
REGISTRY = ("register", "models", "promote", "rollback", "remove")
"""Verbs that share a page."""

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def blocks(page: Path, language: str = r"\w*") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def command_lines() -> list[tuple[str, str]]:
    """(page, line) of every `headstart ...` line in a block, continuation lines joined, comments gone."""
    found = []
    for page in PAGES:
        for block in blocks(page, r"(?:sh|bash|console)?"):
            for line in block.replace("\\\n", " ").splitlines():
                line = re.sub(r"\s+#.*", "", line.strip().removeprefix("$ "))
                if line.startswith("headstart "):
                    found.append((page.name, line))
    return found


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_command_lines_parse(page: str, line: str) -> None:
    _, verb, *rest = shlex.split(line)
    if verb.startswith("--"):
        return
    assert verb in COMMANDS, f"{page}: there is no verb '{verb}'"
    given = COMMANDS[verb].make_context(verb, list(rest)).params
    for text in given.get("method") or []:
        method = MethodSpec.parse(text)
        if (page, method.name) != ("adding-a-method.md", "confidence"):
            catalog.find("methods", method.name)(**method.options)
    Spec.make(sets=given.get("set_") or [])


def test_every_verb_is_shown() -> None:
    verbs = {shlex.split(line)[1] for _, line in command_lines()}
    shown = {
        "fit",
        "predict",
        "evaluate",
        "explain",
        "compare",
        "export",
        "compress",
        "backbones",
        "methods",
        "tasks",
        "serve",
        "key",
    }
    assert shown <= verbs
    assert set(REGISTRY) <= verbs


@pytest.mark.parametrize(
    "verb", ["fit", "predict", "evaluate", "compare", "export", "compress", "lighten", "explain", "serve", *REGISTRY]
)
def test_each_option_stands_on_its_verbs_page(verb: str) -> None:
    page = "registry" if verb in REGISTRY else verb
    text = (REPO / "docs" / f"{page}.md").read_text(encoding="utf-8")
    if verb == "compare":  # shares its options with fit and says so
        assert "[fit](fit.md)" in text
        text += (REPO / "docs" / "fit.md").read_text(encoding="utf-8")
    for parameter in COMMANDS[verb].params:
        for option in parameter.opts:
            if option.startswith("--"):
                assert f"{option}" in text, f"docs/{verb}.md does not mention {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_spec_keys_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    sections = {name: type(getattr(Spec(), name)) for name in ("data", "task", "backbone", "training", "evaluation")}
    known = {f"{name}.{key}" for name, section in sections.items() for key in section.model_fields}
    named = re.findall(r"--set ([a-z_]+\.[a-z_]+)=", text)
    if page.name != "report.md":  # its keys are those of report.json
        named += re.findall(r"`((?:data|training)\.(?!py`)[a-z_]+)`", text)
    for key in named:
        assert key in known, f"{page.name}: there is no key {key}"
    for block in blocks(page, "toml"):
        record = tomllib.loads(block)
        if "project" not in record:
            Spec.make(record)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or path.endswith(".png"):
            continue
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target}"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_use_names_that_exist(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("hs", "hs.methods"):
                if ast.unparse(node) == "hs.methods.Confidence":
                    continue
                holder = hs if ast.unparse(node.value) == "hs" else hs.methods
                assert hasattr(holder, node.attr), f"{page.name}: {ast.unparse(node)}"


def test_the_page_of_methods_is_current() -> None:
    script = REPO / "docs" / "make_methods.py"
    spec = importlib.util.spec_from_file_location("make_methods", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (REPO / "docs" / "methods.md").read_text(encoding="utf-8") == module.render(), "run make docs"


def test_pages_speak_of_the_product_only() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"\bTODO\b|\bplaceholder\b|/work/|\bTBD\b|lorem", text, re.IGNORECASE), page.name


# The worked example -----------------------------------------------------------------------------------


@pytest.fixture
def confidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The class of the worked example, installed as a third party's method."""
    (source,) = [block for block in blocks(REPO / "docs" / "adding-a-method.md", "python") if "@dataclass" in block]
    (tmp_path / "confidence_plugin.py").write_text(source)
    info = tmp_path / "confidence_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: confidence-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[headstart.methods]\nconfidence = confidence_plugin:Confidence\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    catalog.entries.cache_clear()
    yield catalog.find("methods", "confidence")
    catalog.entries.cache_clear()
    sys.modules.pop("confidence_plugin", None)


def mean_entropy(weight: float | None, cls: Any) -> float:
    """Entropy of the answers on the training rows after a short run."""
    import torch

    from tiny import make_loop, make_rows

    rows = make_rows(48)
    trained = make_loop({} if weight is None else {"confidence": cls(weight)}, rows=rows, epochs=4, dropout=0.0).train()
    assert trained.notes == []
    trained.model.eval()
    with torch.no_grad():
        _, outputs = trained.model(rows.batch(list(range(48))))
    return float(torch.distributions.Categorical(logits=outputs).entropy().mean())


def test_the_worked_example_trains_and_does_what_it_says(confidence: Any) -> None:
    assert mean_entropy(2.0, confidence) > mean_entropy(0.1, confidence) > mean_entropy(None, confidence)


def test_the_worked_example_is_listed_checked_and_refused_where_it_makes_no_sense(confidence: Any) -> None:
    from headstart.hooks import Hooks
    from headstart.modalities.text import TextModality
    from headstart.tasks.regression import Regression

    entry = catalog.entries("methods")["confidence"]
    assert entry.to_json()["summary"] == "Rewards answers that keep some doubt."
    assert entry.source == "confidence-plugin"
    with pytest.raises(MethodError, match="expected confidence:weight above 0"):
        confidence(0)
    with pytest.raises(MethodError, match="'confidence' cannot be used here"):
        Hooks({"confidence": confidence()}, Regression.fit([0.1, 0.7, 1.5]), TextModality(), 0)
