"""The command line as a user meets it: every verb, exit statuses, JSON, and where output goes."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from headstart.cli import run


def fit(tiny_bert: Path, tickets: dict[str, Path], out: Path, *more: str) -> int:
    return run(
        ["fit", str(tickets["train"]), "--test", str(tickets["test"]), "--label", "intent", "--text", "text",
         "--backbone", f"file:{tiny_bert}", "--method", "freeze:top=1", "--epochs", "2", "--out", str(out), *more]
    )  # fmt: skip


@pytest.fixture
def bundle(tiny_bert: Path, tickets: dict[str, Path], tmp_path: Path) -> Path:
    assert fit(tiny_bert, tickets, tmp_path / "run") == 0
    return tmp_path / "run"


def test_fit_json_is_the_last_line_and_equals_report_json(
    tiny_bert: Path, tickets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tiny_bert, tickets, tmp_path / "run", "--json") == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out.strip().splitlines()[-1])
    assert found == json.loads((tmp_path / "run" / "report.json").read_text())
    assert len(captured.out.strip().splitlines()) == 1
    assert "Plan:" in captured.err
    accuracy = found["metrics"]["test"]["accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    rows = found["rows"]
    assert rows["read"] == rows["trained"] + rows["validated"] + rows["tested"] + sum(rows["dropped"].values()) == 84


def test_the_bundle_has_its_files(bundle: Path) -> None:
    names = {path.name for path in bundle.iterdir()}
    assert {"bundle.json", "model.safetensors", "report.json", "report.html", "README.md"} <= names
    assert "run.json" not in names
    assert "checkpoint.safetensors" not in names


def test_dry_run_prints_the_plan_and_writes_nothing(
    tiny_bert: Path, tickets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(tmp_path.iterdir())
    assert fit(tiny_bert, tickets, tmp_path / "run", "--dry-run", "--json") == 0
    captured = capsys.readouterr()
    plan = json.loads(captured.out.strip().splitlines()[-1])
    assert plan["stages"][0]["trainable"] < plan["stages"][0]["total"]
    assert "freeze" in captured.err
    assert set(tmp_path.iterdir()) == before


def test_predict_writes_the_input_columns_prediction_and_probabilities(bundle: Path, tmp_path: Path) -> None:
    source = tmp_path / "new.csv"
    source.write_text('id,text\n007,"where is, my parcel"\n8,refund please\n', encoding="utf-8")
    assert run(["predict", str(bundle), str(source), "--out", str(tmp_path / "out.csv")]) == 0
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["007", "8"]
    assert rows[0]["text"] == "where is, my parcel"
    probabilities = [name for name in rows[0] if name not in ("id", "text", "prediction")]
    assert len(probabilities) == 3
    for row in rows:
        values = {name: float(row[name]) for name in probabilities}
        assert abs(sum(values.values()) - 1) < 1e-5
        assert max(values, key=values.get).endswith(row["prediction"])  # type: ignore[arg-type]


def test_evaluate_slices(bundle: Path, tickets: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["evaluate", str(bundle), str(tickets["test"]), "--slice", "channel", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out.strip().splitlines()[-1])
    assert "channel" in found["slices"]
    assert "accuracy" in captured.err
    assert "email" in captured.err


def test_compare(tiny_bert: Path, tickets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = run(
        ["compare", str(tickets["train"]), "--test", str(tickets["test"]), "--label", "intent",
         "--backbone", f"file:{tiny_bert}", "--against", "scratch", "--against", "probe", "--against", "lora:r=2",
         "--labels", "50%,100%", "--epochs", "1", "--out", str(tmp_path / "cmp"), "--json"]
    )  # fmt: skip
    assert status == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert {(row["arm"], row["budget"]) for row in found["summary"]} == {
        (arm, budget) for arm in ("recipe", "scratch", "probe", "lora:r=2") for budget in ("50%", "100%")
    }
    assert len(found["transfer"]) == 6
    assert (tmp_path / "cmp" / "compare.html").stat().st_size > 1000


@pytest.mark.parametrize("verb", ["backbones", "methods", "tasks"])
def test_listings(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([verb, "--json"]) == 0
    entries = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert len(entries) >= 3
    assert all(entry["name"] and entry["summary"] and entry["source"] for entry in entries)
    assert run([verb]) == 0
    assert entries[0]["name"] in capsys.readouterr().out


def test_a_method_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["methods", "l2sp"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("l2sp [headstart]")
    assert "Equation:" in said
    assert "Source:" in said
    assert run(["methods", "l2sp", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["doc"] in said


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["methods", "lorra"], "did you mean 'lora'"),
        (["fit", "{train}", "--epohs", "3"], "--epochs"),
        (["fit"], "nothing to learn from"),
        (["fit", "{train}", "--set", "training.epoch=3"], "did you mean 'epochs'"),
        (["fit", "{train}", "--set", "training.epochs"], "expected --set section.key=value"),
        (["fit", "{train}", "--method", "lorra"], "did you mean 'lora'"),
        (["fit", "{train}", "--method", "lora:rank=8"], "method 'lora' has no option 'rank'"),
        (["fit", "{train}", "--method", "lora", "--method", "freeze:top=1"], "'lora' and 'freeze' cannot share a run"),
        (["fit", "{train}", "--method", "fgm", "--method", "pgd"], "'fgm' and 'pgd' cannot share a run"),
        (["fit", "{train}", "--method", "cutmix"], "'cutmix' cannot be used here"),
        (["fit", "{train}", "--method", "ema", "--method", "ema:decay=0.9"], "listed twice"),
        (["fit", "{train}", "--method", "lora:r=0"], "lora:r"),
        (["fit", "{train}", "--label", "intnt"], "intent"),
        (["fit", "{train}", "--task", "classifcation"], "classification"),
        (["fit", "{train}", "--backbone", "hff:bert"], "hf"),
        (["fit", "{train}", "--time-limit", "soon"], "expected a duration"),
        (["fit", "{train}", "--epochs", "-1"], "epochs"),
        (["fit", "{train}", "--epochs", "three"], "valid integer"),
        (["fit", "{train}", "--set", "training.metric=acuracy"], "did you mean 'accuracy'"),
        (["fit", "missing.csv"], "missing.csv"),
        (["fit", "--spec", "missing.toml"], "missing.toml"),
        (["fit", "{train}", "--resume"], "--resume needs --out"),
        (["predict", "nowhere", "{train}", "--out", "x.csv"], "there is no bundle at 'nowhere'"),
        (["evaluate", "nowhere", "{train}"], "there is no bundle at 'nowhere'"),
        (["compare", "{train}", "--labels", "some"], "expected label budgets"),
        (["compare", "{train}", "--against", "lorra"], "did you mean 'lora'"),
        (["compare", "{train}", "--seeds", "0"], "at least 1 seed"),
        (["fitt"], "fitt"),
    ],
)  # fmt: skip
def test_bad_input_is_status_2_and_one_sentence(
    arguments: list[str], sentence: str, tickets: dict[str, Path], tiny_bert: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    filled = [part.replace("{train}", str(tickets["train"])) for part in arguments]
    if "{train}" in arguments and filled[0] == "fit" and "--backbone" not in filled:
        filled += ["--backbone", f"file:{tiny_bert}"]
    assert run(filled) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in captured.err
    assert not (tmp_path / "runs").exists()


def test_an_output_in_use_is_not_overwritten_unasked(
    bundle: Path, tiny_bert: Path, tickets: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (bundle / "model.safetensors").read_bytes()
    assert fit(tiny_bert, tickets, bundle) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (bundle / "model.safetensors").read_bytes() == before
    assert fit(tiny_bert, tickets, bundle, "--overwrite", "--seed", "3") == 0
    assert (bundle / "model.safetensors").read_bytes() != before


def test_a_bundle_repeats_its_run(bundle: Path, tmp_path: Path) -> None:
    assert run(["fit", "--spec", str(bundle), "--out", str(tmp_path / "again")]) == 0
    first, second = (path / "model.safetensors" for path in (bundle, tmp_path / "again"))
    assert first.read_bytes() == second.read_bytes()


def test_predict_refuses_a_file_without_the_column(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "new.csv"
    source.write_text("txt\nhello\n", encoding="utf-8")
    assert run(["predict", str(bundle), str(source), "--out", str(tmp_path / "out.csv")]) == 2
    assert "text" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_help_imports_no_heavy_library() -> None:
    code = (
        "import sys\nfrom headstart.cli import run\nrun(['--help'])\n"
        "heavy = {'torch', 'transformers', 'pandas', 'sklearn', 'timm', 'peft', 'pyarrow', 'numpy'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "compare" in done.stdout
