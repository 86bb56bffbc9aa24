# Every target makes what it needs; a machine with Python 3.11, git, make and a C++ compiler is enough.
#   make setup PYTHON=python3.11          another interpreter
#   make setup MIXAQ_SYSTEM_PACKAGES=1    build on the torch (CUDA or not) that interpreter already has
PYTHON ?= python3
VENV := .venv/bin
export MIXAQ_SYSTEM_PACKAGES

.PHONY: setup demo test nightly lint format bench reproduce docs-test clean

setup:
	@$(PYTHON) tools/setup_env.py

demo: setup
	@$(VENV)/python tools/demo.py

test: setup
	@$(VENV)/python -m pytest tests

nightly: setup
	@$(VENV)/python -m pytest tests -m nightly

lint: setup
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/mypy mixaq_mmdet/windows mixaq_mmdet/quantization mixaq_mmdet/search

format: setup
	@$(VENV)/ruff check --fix .
	@$(VENV)/ruff format .

bench: setup
	@$(VENV)/python benchmarks/two_branch.py --quick

docs-test: setup
	@$(VENV)/python tests/docs/run_pages.py

reproduce: setup
	@$(VENV)/python benchmarks/experiments.py run --tier full --open-test

clean:
	rm -rf .venv build dist *.egg-info mixaq_mmdet/.mim
