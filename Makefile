# `make demo` and `make test` need python3 (3.11 or newer) with venv and pip, and nothing else.
# VENV names the virtual environment: `make VENV=/tmp/venv test`.

VENV ?= .venv
PYTHON ?= python3
WORKERS ?= 2
OUT ?= runs
SHELL := /bin/bash
BIN := $(VENV)/bin
TICKETS := src/headstart/examples/support_tickets

export TOKENIZERS_PARALLELISM ?= false

.DELETE_ON_ERROR:
.PHONY: help install demo demo-images test lint format docs clean

help:
	@echo "make demo         fit the support tickets that come with the project, write the report, predict"
	@echo "make demo-images  the same with pictures: scikit-learn's handwritten digits"
	@echo "make test         all tests"
	@echo "make lint         ruff and mypy"
	@echo "make docs         write the generated pages of docs/"
	@echo "make clean        remove the environment, caches and the demo's output"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e '.[starter,images,audio,lora,tracking,labels,onnx,openvino,explain,serve,dev]'
	@touch $@

demo: install
	$(BIN)/headstart fit $(TICKETS)/train.csv --test $(TICKETS)/test.csv --out $(OUT)/tickets --seed 1 --overwrite
	$(BIN)/headstart predict $(OUT)/tickets $(TICKETS)/new.csv --out $(OUT)/tickets-predictions.csv
	@$(BIN)/python -m headstart.examples show $(OUT)/tickets-predictions.csv
	@echo "Report: $(OUT)/tickets/report.html   All predictions: $(OUT)/tickets-predictions.csv"

demo-images: install
	@rm -rf $(OUT)/digits-data
	$(BIN)/python -m headstart.examples digits $(OUT)/digits-data --per-class 40
	$(BIN)/headstart fit $(OUT)/digits-data/train --test $(OUT)/digits-data/test --out $(OUT)/digits --seed 1 --overwrite \
		--set backbone.image_size=96
	@echo "Report: $(OUT)/digits/report.html"

# One thread a worker: the workers are as many as the cores of a small machine, and sums keep their order.
test: export OMP_NUM_THREADS ?= 1
test: install
	$(BIN)/python -m pytest -n $(WORKERS)

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install
	$(BIN)/python docs/make_methods.py

clean:
	rm -rf $(VENV) $(OUT)/tickets $(OUT)/digits $(OUT)/digits-data $(OUT)/tickets-predictions.csv
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist src/*.egg-info
	find src tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +
