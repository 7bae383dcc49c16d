"""Settings that do not suit a run are refused before anything is spent."""

from __future__ import annotations

import pytest

from headstart import settings
from headstart.errors import SpecError
from headstart.spec import TrainingSpec
from method_runs import make_loop


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_rows_without_tokens_have_no_budget_of_tokens(kind: str) -> None:
    loop = make_loop([], kind)
    task, modality = loop.hooks.task, loop.hooks.modality
    with pytest.raises(SpecError, match=f"counts tokens, and {kind} rows have none: choose a smaller"):
        settings.check(TrainingSpec(max_tokens=100), {}, loop.model, task, modality, pretrained=True)


def test_a_text_run_may_have_one() -> None:
    loop = make_loop([], "text")
    settings.check(TrainingSpec(max_tokens=100), {}, loop.model, loop.hooks.task, loop.hooks.modality, pretrained=True)
