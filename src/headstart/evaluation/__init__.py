"""Metrics with intervals, calibration, the report page and the model card."""

from headstart.evaluation.measure import measure_split
from headstart.evaluation.report import Report

__all__ = ["Report", "measure_split"]
