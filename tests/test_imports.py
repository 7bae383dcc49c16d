"""Imports point one way, plug-ins do not know each other, and nothing heavy is loaded before it is needed."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import headstart

ROOT = Path(headstart.__file__).parent

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "values", "members"),
    ("stores", "inside", "ahead", "aside", "parts", "dropping", "products", "heap"),
    ("spec", "catalog", "protocols", "model", "attack", "tables"),
    ("data", "modalities", "tasks", "backbones", "methods", "tracking", "examples"),
    ("encoded", "state", "running", "optimiser", "recipe", "evaluation"),
    ("heads",),
    ("inference", "hooks", "fitted", "label_errors", "scoring"),
    ("steps",),
    ("frozen", "planning", "settings"),
    ("loop", "views"),
    ("bundle", "robustness"),
    ("stages",),
    ("evidence", "forecast"),
    ("adapt",),
    ("terminal",),
    ("comparison", "verbs", "sklearn", "manual", "explanation", "compression"),
    ("registry",),
    ("serve",),
    ("cli",),
    ("__main__",),
)
"""Rooms from the ground up. A room imports only from layers below its own."""

EXCEPTIONS = {
    # `Context.quiet` calls `model.quiet` when it is used; `model` is typed by `protocols`.
    ("protocols", "model"),
    ("model", "protocols"),
}

PLUG_INS = ("modalities", "tasks", "backbones", "methods")

HEAVY = ("torch", "transformers", "pandas", "sklearn", "scipy", "pyarrow", "timm", "peft", "torchvision", "accelerate",
         "datasets", "matplotlib", "mlflow", "tensorboard", "PIL", "starlette", "uvicorn", "prometheus_client", "onnx",
         "onnxruntime", "openvino", "captum", "ray")  # fmt: skip

OPTIONAL = ("pandas", "timm", "soundfile", "soxr", "peft", "torchvision", "datasets", "matplotlib", "mlflow",
            "tensorboard", "sentence_transformers", "cleanlab", "onnx", "onnxruntime", "onnxscript",
            "openvino", "captum", "ray")  # fmt: skip


def sources() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("headstart", *parts)).removesuffix(".__init__")


def imports(tree: ast.AST, *, typing_only: bool = False) -> Iterator[tuple[str, int]]:
    """(module, line) of each import in functions too. Blocks for the type checker are left out unless asked for."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            if typing_only:
                yield from imports(node, typing_only=True)
        elif isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are written in full"
            base = node.module or ""
            for name in node.names:
                # `from headstart.methods import _checks` names a module, `from headstart.errors import X` does not.
                inner = f"{base}.{name.name}"
                yield (inner if is_module(inner) else base), node.lineno
        else:
            yield from imports(node, typing_only=typing_only)


def is_module(name: str) -> bool:
    if not name.startswith("headstart"):
        return False
    place = ROOT.joinpath(*name.split(".")[1:])
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "headstart"


def top_level(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Imports that run when the module is imported."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(ast.Module([node], []))
        elif isinstance(node, ast.Try | ast.With) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test)
        ):
            yield from imports(node)


def test_every_room_has_a_layer() -> None:
    rooms = {room(module_of(path)) for path in sources()} - {"headstart"}
    assert rooms <= {name for layer in LAYERS for name in layer}, "give the new room its layer in LAYERS"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    height = {name: level for level, layer in enumerate(LAYERS) for name in layer}
    here = room(module_of(path))
    if here == "headstart":
        return  # the package's front door names its rooms as strings and loads them when asked
    wrong = []
    for target, line in imports(ast.parse(path.read_text(encoding="utf-8"))):
        there = room(target)
        if not target.startswith("headstart") or there in (here, "headstart") or (here, there) in EXCEPTIONS:
            continue
        if height[there] >= height[here]:
            wrong.append(f"line {line}: {here} (layer {height[here]}) imports {there} (layer {height[there]})")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("kind", PLUG_INS)
def test_plug_ins_do_not_import_each_other(kind: str) -> None:
    wrong = []
    for path in sorted((ROOT / kind).rglob("*.py")):
        if path.stem == "__init__":
            continue
        for target, line in imports(ast.parse(path.read_text(encoding="utf-8")), typing_only=True):
            parts = target.split(".")
            if len(parts) > 2 and parts[1] in PLUG_INS and not parts[2].startswith("_"):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports the plug-in {target}")
    assert not wrong, "\n".join(wrong)


def test_private_modules_stay_in_their_room() -> None:
    wrong = []
    for path in sources():
        here = room(module_of(path))
        for target, line in imports(ast.parse(path.read_text(encoding="utf-8")), typing_only=True):
            hidden = [part for part in target.split(".")[1:] if part.startswith("_") and not part.startswith("__")]
            if target.startswith("headstart") and hidden and room(target) != here:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {target}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_optional_libraries_are_imported_where_they_are_used(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    early = [f"line {line}: {name}" for name, line in top_level(tree) if name.split(".")[0] in OPTIONAL]
    assert not early, "\n".join(early)


def test_the_checker_sees_what_it_should() -> None:
    tree = ast.parse(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import headstart.cli\n"
        "def f():\n    from headstart import adapt\n    import headstart.methods.lora\n"
        "class A:\n    def g(self):\n        if True:\n            from headstart.errors import BadInput\n"
        "try:\n    import timm\nexcept ImportError:\n    pass\n"
    )
    found = [name for name, _ in imports(tree)]
    assert found == ["typing", "headstart.adapt", "headstart.methods.lora", "headstart.errors", "timm"]
    assert "headstart.cli" in [name for name, _ in imports(tree, typing_only=True)]
    assert [name for name, _ in top_level(tree)] == ["typing", "timm"]


def loaded_after(code: str) -> set[str]:
    """Names of the heavy libraries that a fresh interpreter has loaded after running `code`."""
    script = f"import sys\n{code}\nprint('LOADED', *sorted(set(sys.modules) & {set(HEAVY)!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.strip().splitlines()[-1].split()[1:])


def test_import_headstart_loads_nothing_heavy() -> None:
    assert loaded_after("import headstart; dir(headstart); headstart.__version__") == set()


def test_spec_and_errors_load_nothing_heavy() -> None:
    assert (
        loaded_after("import headstart as hs; hs.Spec.make(); hs.errors; hs.examples.path('support_tickets')") == set()
    )


@pytest.mark.parametrize("kind", ["modalities", "tasks", "methods"])
def test_listing_plug_ins_loads_nothing_heavy(kind: str) -> None:
    assert loaded_after(f"from headstart.catalog import entries; assert entries({kind!r})") == set()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["fit", "--help"],
        ["compare", "--help"],
        ["explain", "--help"],
        ["serve", "--help"],
        ["key", "--help"],
        ["register", "--help"],
        ["promote", "--help"],
        ["methods"],
        ["tasks", "--json"],
        ["backbones"],
    ],
    ids=" ".join,
)
def test_command_line_help_and_listings_load_nothing_heavy(arguments: list[str]) -> None:
    if not (ROOT / "cli.py").is_file():
        pytest.skip("there is no command line")
    assert loaded_after(f"from headstart.cli import run; assert run({arguments!r}) == 0") == set()


def test_every_public_name_can_be_loaded() -> None:
    for name in headstart.__all__:
        assert getattr(headstart, name) is not None
    assert set(headstart.__all__) <= set(dir(headstart))
    assert sorted(set(headstart.__all__)) == sorted(headstart.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'fitt'"):
        _ = headstart.fitt


def test_every_module_can_be_imported_by_itself() -> None:
    """A module that only works after another one was imported hides a circle."""
    names = [module_of(path) for path in sources() if path.name != "__main__.py" and path.parent == ROOT]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    for old in [m for m in sys.modules if m.startswith('headstart')]:\n"
        "        del sys.modules[old]\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_examples_command_is_importable() -> None:
    assert callable(importlib.import_module("headstart.examples.__main__").main)
