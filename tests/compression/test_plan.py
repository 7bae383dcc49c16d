"""What a user writes for a way to a smaller model."""

from __future__ import annotations

import pytest

from headstart.compression.plan import Step, parse, slug
from headstart.errors import SpecError


def test_steps_are_read() -> None:
    steps = parse("prune:0.4,heal=3 distil:layers=3,hidden=1.5,gate=2% int8")
    assert steps == (
        Step("prune", {"share": 0.4, "heal": 3}),
        Step("distil", {"layers": 3, "hidden": 1.5}, 0.02),
        Step("int8"),
    )
    assert [str(step) for step in steps] == ["prune:0.4,heal=3", "distil:layers=3,hidden=1.5,gate=0.02", "int8"]
    assert parse("prune:share=0.4,heal=3")[0] == steps[0]
    assert parse("prune:heads=0.5,kind=magnitude")[0].options == {"heads": 0.5, "kind": "magnitude"}
    assert parse("prune:0.4,gate=off")[0].gate == 1 and parse(str(parse("int8:gate=off")[0])) == parse("int8:gate=off")


def test_folders_are_named_after_the_work_and_an_export_after_its_gate_too() -> None:
    assert slug(parse("prune:0.4,gate=off distil:layers=[0,2]")) == "prune-0.4+distil-layers--0--2"
    assert slug(parse("prune:0.4,gate=off")) == slug(parse("prune:0.4"))
    assert slug(parse("int8:gate=0.1")) != slug(parse("int8"))


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        ("", "expected a plan of one or more steps, such as 'prune:0.4 distil:layers=3 int8', received none"),
        ("prunes:0.4", "there is no step 'prunes' to compress by: did you mean 'prune'?"),
        ("prune", "expected a share to prune, such as prune:0.4, received 'prune'"),
        ("prune:0.9", "expected a share to prune above 0 and up to 0.8, such as prune:0.4, received 'prune:0.9'"),
        ("prune:lots", "expected a share to prune above 0 and up to 0.8, such as prune:0.4, received 'prune:lots'"),
        ("prune:0.4,heal=-1", "expected prune:heal as a whole number of at least 0, received '-1'"),
        ("distil:layers=0", "expected distil:layers as a whole number of at least 1, received '0'"),
        ("distil:epochs=1.5", "expected distil:epochs as a whole number of at least 1, received '1.5'"),
        ("distil:rate=fast", "expected distil:rate as a number above 0, received 'fast'"),
        ("distil:weight=0", "expected distil:weight as a number above 0, received '0'"),
        ("int8 prune:0.4", "prune comes after an export, which cannot learn: put it before"),
        ("prune:0.4 prune:0.2", "has prune twice: give it once, with all that it shall do"),
        ("int8:layers=2", "the step 'int8' takes no options but gate, received 'int8:layers=2'"),
        ("prune:0.4,gate=lots", "expected a gate from 0 to 1 or a percentage, such as 0.5% or 0.005, received 'lots'"),
    ],
)
def test_bad_plans(plan: str, sentence: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(plan)
    assert sentence in str(caught.value)
