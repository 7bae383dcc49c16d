"""Folders of files: every row once, whatever happened before; refusals that lose nothing."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import headstart as hs
from headstart import scoring
from headstart.errors import DataError

JOB = {"model": "one"}


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """Seven small files in two folders, and names that are nobody's business."""
    folder = tmp_path / "inbox"
    for number in range(7):
        path = folder / ("old" if number % 2 else ".") / f"part-{number}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text\n" + "".join(f"row {number} {i}\n" for i in range(number + 1)))
    (folder / "_SUCCESS.csv").write_text("x")
    (folder / ".hidden.csv").write_text("x")
    (folder / "notes.txt").write_text("x")
    return folder


def copying(path: Path, out: Path) -> int:
    """Stands for a model: as many rows out as in."""
    lines = path.read_text().splitlines()
    if "bad" in lines:
        raise DataError("row 1 is bad")
    out.write_text("\n".join(lines) + "\n")
    return len(lines) - 1


def run(inbox: Path, out: Path, answer: Callable[[Path, Path], int] = copying, **more: object) -> scoring.Done:
    return scoring.answer_folder(inbox, out, lambda: answer, more.pop("job", JOB), **more)  # type: ignore[arg-type]


def test_each_file_gives_one_of_the_same_name(inbox: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "out", []
    done = run(inbox, out, tell=said.append)
    assert done == scoring.Done(rows=28, files=7, before=0)
    assert said[0] == "[1/7] old/part-1.csv: 2 rows" or said[0] == "[1/7] part-0.csv: 1 rows"
    names = {str(path.relative_to(inbox)) for path in scoring.tables(inbox)}
    assert len(names) == 7
    assert {str(path.relative_to(out)) for path in scoring.tables(out)} == names


def test_going_on_answers_only_what_is_new_or_changed(inbox: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(inbox, out)
    seen: list[str] = []

    def watched(path: Path, target: Path) -> int:
        seen.append(path.name)
        return copying(path, target)

    assert run(inbox, out, watched, resume=True).before == 7
    assert seen == []
    (inbox / "part-0.csv").write_text("text\nanother row\nand one\n")
    (inbox / "part-9.csv").write_text("text\nnew\n")
    (out / "part-2.csv").unlink()
    done = run(inbox, out, watched, resume=True)
    assert sorted(seen) == ["part-0.csv", "part-2.csv", "part-9.csv"]
    assert done == scoring.Done(rows=30, files=8, before=5)


def test_a_line_that_was_cut_off_counts_as_none(inbox: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(inbox, out)
    record = out / scoring.RECORD
    record.write_bytes(record.read_bytes()[:-9])
    done = run(inbox, out, resume=True)
    assert (done.before, done.rows) == (6, 28)
    assert json.loads(record.read_text().splitlines()[0]) == {"job": JOB}


def test_a_file_that_is_refused_does_not_stop_the_others(inbox: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (inbox / "part-0.csv").write_text("text\nbad\n")
    with pytest.raises(DataError, match=r"1 of 7 files were refused.*part-0\.csv: row 1 is bad.*--resume"):
        run(inbox, out)
    (inbox / "part-0.csv").write_text("text\ngood\n")
    assert run(inbox, out, resume=True) == scoring.Done(rows=28, files=7, before=6)


def test_output_folders_that_are_not_free_are_refused(inbox: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="lies in the folder that is read"):
        run(inbox, inbox / "answers")
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="it holds something else; choose an empty folder"):
        run(inbox, out)
    assert (out / "thesis.tex").read_text() == "mine"
    with pytest.raises(DataError, match="this is a file"):
        run(inbox, out / "thesis.tex")
    run(inbox, tmp_path / "second")
    with pytest.raises(DataError, match="holds answers already: go on with --resume"):
        run(inbox, tmp_path / "second")
    with pytest.raises(DataError, match="of another model or other options"):
        run(inbox, tmp_path / "second", resume=True, job={"model": "two"})
    with pytest.raises(DataError, match="expected local or ray as the engine, received 'spark'"):
        run(inbox, tmp_path / "third", engine="spark")


def test_two_runs_do_not_write_to_one_folder(inbox: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def again(path: Path, target: Path) -> int:
        with pytest.raises(DataError, match="another process writes to"):
            run(inbox, out, resume=True)
        return copying(path, target)

    run(inbox, out, again)


SLOW = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from headstart import scoring
from headstart.data import write_table
import pyarrow as pa

def slow(path, target):
    rows = path.read_text().splitlines()[1:]
    def pieces():
        for row in rows:
            time.sleep(0.004)
            yield pa.table({{"text": [row]}})
    return write_table(pieces(), target)

scoring.answer_folder(Path({inbox!r}), Path({out!r}), lambda: slow, {{"model": "one"}}, resume=True)
"""


def test_killed_at_random_moments_every_row_is_answered_once(inbox: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = SLOW.format(tests=str(Path(__file__).parent), inbox=str(inbox), out=str(out))
    draw, kills = random.Random(0), 0
    for _ in range(40):
        process = subprocess.Popen([sys.executable, "-c", code])
        while process.poll() is None and not (out / scoring.RECORD).exists():
            time.sleep(0.01)
        time.sleep(draw.random() * 0.06)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        if process.wait() == 0 or kills >= 6:
            break
    subprocess.run([sys.executable, "-c", code], check=True)
    assert kills
    answered = [csv.DictReader(path.read_text().splitlines()) for path in scoring.tables(out)]
    found = [row["text"] for rows in answered for row in rows]
    assert sorted(found) == sorted(f"row {n} {i}" for n in range(7) for i in range(n + 1))


def test_predict_takes_a_folder(tickets: dict[str, Path], tiny_bert: Path, tmp_path: Path) -> None:
    made = hs.fit(tickets["train"], backbone=f"file:{tiny_bert}", methods=["freeze:probe"], out=tmp_path / "bundle")
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(2):
        (folder / f"{number}.csv").write_text(tickets["test"].read_text())
    rows = len(tickets["test"].read_text().splitlines()) - 1
    assert hs.predict(tmp_path / "bundle", folder, tmp_path / "answers") == 2 * rows
    hs.predict(tmp_path / "bundle", tickets["test"], tmp_path / "alone.csv")
    assert (tmp_path / "answers" / "1.csv").read_text() == (tmp_path / "alone.csv").read_text()
    with pytest.raises(DataError, match="are for a folder of files"):
        hs.predict(tmp_path / "bundle", tickets["test"], tmp_path / "b.csv", resume=True)
    with pytest.raises(DataError, match="pass the bundle's folder"):
        hs.predict(made, folder, tmp_path / "more", engine="ray")


def test_ray_answers_the_same(tickets: dict[str, Path], tiny_bert: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    hs.fit(tickets["train"], backbone=f"file:{tiny_bert}", methods=["freeze:probe"], out=tmp_path / "bundle")
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.csv").write_text(tickets["test"].read_text())
    (folder / "wrong.csv").write_text("title\nno such column\n")
    with pytest.raises(DataError, match=r"1 of 4 files were refused.*wrong\.csv"):
        hs.predict(tmp_path / "bundle", folder, tmp_path / "answers", engine="ray")
    hs.predict(tmp_path / "bundle", tickets["test"], tmp_path / "alone.csv")
    for number in range(3):
        assert (tmp_path / "answers" / f"{number}.csv").read_text() == (tmp_path / "alone.csv").read_text()
