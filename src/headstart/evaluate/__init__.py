"""Metrics with intervals, calibration, the report page and the model card."""

from headstart.evaluate.measure import measure_split
from headstart.evaluate.report import Report

__all__ = ["Report", "measure_split"]
