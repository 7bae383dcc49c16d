"""The data that comes with the package."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from headstart import examples
from headstart.errors import DataError
from headstart.examples.__main__ import main, show


def rows(name: str) -> list[dict[str, str]]:
    with open(examples.path("support_tickets") / name, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_tickets_have_at_least_eight_intents_of_sixty_messages() -> None:
    train, test = rows("train.csv"), rows("test.csv")
    counts = Counter(row["intent"] for row in train + test)
    assert len(counts) >= 8
    assert set(counts.values()) == {60}
    assert set(Counter(row["intent"] for row in train).values()) == {45}
    assert set(Counter(row["intent"] for row in test).values()) == {15}


def test_tickets_are_balanced_over_channels() -> None:
    for part, each in (("train.csv", 15), ("test.csv", 5)):
        counts = Counter((row["intent"], row["channel"]) for row in rows(part))
        assert {channel for _, channel in counts} == {"email", "chat", "phone note"}
        assert set(counts.values()) == {each}


def test_no_message_appears_twice_anywhere() -> None:
    texts = [
        " ".join(row["text"].lower().split()) for part in ("train.csv", "test.csv", "new.csv") for row in rows(part)
    ]
    assert [text for text, count in Counter(texts).items() if count > 1] == []
    assert all(len(text) > 4 for text in texts)


def test_messages_are_varied_and_not_filled_templates() -> None:
    texts = [row["text"] for row in rows("train.csv")]
    lengths = sorted(len(text.split()) for text in texts)
    assert lengths[len(lengths) // 10] <= 7 and lengths[-len(lengths) // 10] >= 25
    starts = Counter(" ".join(text.lower().split()[:4]) for text in texts)
    assert starts.most_common(1)[0][1] <= 4


def test_new_messages_have_no_labels() -> None:
    new = rows("new.csv")
    assert len(new) == 12
    assert set(new[0]) == {"text", "channel"}


def test_readme_tells_that_the_messages_were_written_for_the_demo() -> None:
    readme = (examples.path("support_tickets") / "README.md").read_text(encoding="utf-8")
    assert "written for this demo" in readme
    for intent in {row["intent"] for row in rows("train.csv")}:
        assert f"`{intent}`" in readme
    assert f"| {len(rows('train.csv'))} (" in readme and f"| {len(rows('test.csv'))} (" in readme


def test_unknown_example_names_the_nearest() -> None:
    assert examples.names() == ["support_tickets"]
    with pytest.raises(DataError, match="did you mean 'support_tickets'"):
        examples.path("support_ticket")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return examples.write_digits(tmp_path_factory.mktemp("data") / "digits")


def test_digits_are_every_row_of_the_original_once(digits: Path) -> None:
    original = load_digits()
    found = sorted(int(file.stem) for file in digits.rglob("*.png"))
    assert found == list(range(len(original.target)))
    for file in digits.rglob("*.png"):
        assert original.target[int(file.stem)] == int(file.parent.name)


def test_digits_can_be_read_back_to_the_original_pixels(digits: Path) -> None:
    original = load_digits().images
    for file in sorted(digits.rglob("*.png"))[::97]:
        with Image.open(file) as picture:
            pixels = np.asarray(picture)
        assert pixels.shape == (32, 32)
        np.testing.assert_array_equal(np.rint(pixels[::4, ::4] / 255 * 16), original[int(file.stem)])


def test_digits_test_rows_come_after_all_training_rows_of_their_class(digits: Path) -> None:
    for digit in range(10):
        train = [int(file.stem) for file in (digits / "train" / str(digit)).iterdir()]
        test = [int(file.stem) for file in (digits / "test" / str(digit)).iterdir()]
        assert max(train) < min(test)
        assert len(test) == (len(train) + len(test)) // 5


def test_digits_per_class_spreads_over_the_training_part_and_keeps_all_of_the_test_part(
    tmp_path: Path, digits: Path
) -> None:
    few = examples.write_digits(tmp_path / "few", per_class=3)
    for digit in range(10):
        every = sorted(file.name for file in (digits / "train" / str(digit)).iterdir())
        kept = sorted(file.name for file in (few / "train" / str(digit)).iterdir())
        assert len(kept) == 3 and kept[0] == every[0] and kept[2] == every[-1]
        assert abs(every.index(kept[1]) - len(every) / 2) <= 1
        assert len(list((few / "test" / str(digit)).iterdir())) == len(list((digits / "test" / str(digit)).iterdir()))


def test_digits_refuse_a_used_folder_and_a_senseless_count(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="already holds something"):
        examples.write_digits(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(DataError, match="received per_class = 0"):
        examples.write_digits(tmp_path / "new", per_class=0)


def test_module_command_writes_digits_and_reports_errors_as_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "digits"
    command = [sys.executable, "-m", "headstart.examples", "digits", str(out), "--per-class", "1"]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0 and len(list((out / "train").rglob("*.png"))) == 10
    assert main(command[3:]) == 2
    again = capsys.readouterr().err
    assert again.startswith("error: ") and "already holds something" in again and again.count("\n") == 1


def test_show_prints_prediction_probability_and_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "predictions.csv"
    head = "text,prediction,probability_very_late,probability_refund,probability_late\n"
    file.write_text(f"{head}where is it,late,0.0,0.1,0.9\n{'x' * 90},refund,0.0,0.75,0.25\n")
    assert show(file)[0] == "late     90%  where is it"
    assert show(file)[1].startswith("refund   75%  xxx") and show(file)[1].endswith("x…")
    assert main(["show", str(tmp_path / "absent.csv")]) == 2
    assert "cannot read the predictions" in capsys.readouterr().err
    with pytest.raises(DataError, match="column 'prediction'"):
        show(examples.path("support_tickets") / "new.csv")
