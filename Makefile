# Every target makes what it needs; a machine with Python 3.10 to 3.13, git, make and a C++ compiler is enough.
#   make setup PYTHON=python3.12          another interpreter, by name or path
#   make setup TORCH_INDEX=URL            torch from another index: https://download.pytorch.org/whl/cpu has CPU builds
#   make setup STACK=onedl                the maintained onedl-* forks of the mm packages, in .venv-onedl; so does make test
#   make setup MIXAQ_SYSTEM_PACKAGES=1    build on the torch (CUDA or not) that interpreter already has
#   make test JOBS=1                      test files in one process instead of two, which need some 2 GB of memory each
PYTHON ?= python3
JOBS ?= 2
VENV := .venv$(if $(filter-out openmmlab,$(STACK)),-$(STACK))/bin
export MIXAQ_SYSTEM_PACKAGES STACK TORCH_INDEX

.PHONY: setup demo test test-pythons nightly sanitize lint format bench gpu-check reproduce docs docs-test clean

setup:
	@$(PYTHON) tools/setup_env.py

demo: setup
	@$(VENV)/python tools/demo.py

test: setup
	@$(VENV)/python -m pytest tests -n $(JOBS) --dist loadfile --max-worker-restart 0

test-pythons: setup
	@$(VENV)/python tests/run_pythons.py

nightly: setup
	@$(VENV)/python -m pytest tests -m nightly --durations=20

# a part of nightly: the C++ kernels under AddressSanitizer and UBSan
sanitize: setup
	@$(VENV)/python -m pytest tests/hardening/test_sanitizers.py -m nightly --durations=0

lint: setup
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/mypy mixaq_mmdet
	@$(VENV)/lint-imports

format: setup
	@$(VENV)/ruff check --fix .
	@$(VENV)/ruff format .

bench: setup
	@$(VENV)/python benchmarks/two_branch.py --quick

gpu-check:
	@$(PYTHON) benchmarks/gpu_check.py --json gpu-check.json

docs: setup
	@$(VENV)/sphinx-build -q -W --keep-going docs docs/_build/html
	@echo the site is docs/_build/html/index.html

docs-test: setup
	@$(VENV)/python tests/docs/run_pages.py

reproduce: setup
	@$(VENV)/python benchmarks/experiments.py run --tier full --open-test

clean:
	rm -rf .venv .venv-onedl build dist *.egg-info mixaq_mmdet/.mim
