"""The made-up reports, built once."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from headstart.evaluation import Report


def _samples() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evaluate_samples", Path(__file__).with_name("samples.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def samples() -> ModuleType:
    return _samples()


@pytest.fixture(scope="session")
def text_report(samples: ModuleType) -> Report:
    return samples.text_report()


@pytest.fixture(scope="session")
def image_report(samples: ModuleType) -> Report:
    return samples.image_report()


@pytest.fixture(scope="session")
def regression_report(samples: ModuleType) -> Report:
    return samples.regression_report()


@pytest.fixture(scope="session")
def comparison(samples: ModuleType) -> dict[str, Any]:
    return samples.comparison()
