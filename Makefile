# Two commands take a fresh machine from a clone to a result: `make demo` and `make test`.
# Both make their own virtual environment. `make help` lists the rest.

VENV ?= .venv
WORKDIR ?= runs/demo
# cuda or tpu installs the accelerator's extra next to the pinned packages.
ACCELERATOR ?=
PYTEST_ARGS ?=
# A file's tests stay in one process, which keeps what it has compiled; more than four gain little.
PYTEST := -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile
# make lock UPGRADE=1 moves every pin to its newest version; without it only missing pins are added.
UPGRADE ?=

PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed$(if $(ACCELERATOR),-$(ACCELERATOR))
PYTHONS := $(PYTHON) python3.13 python3.12 python3.11 python3
CODE := cmunet_jax tfds_angio configs tests

# Sub-makes print nothing of their own (GNU make before 4.4 still does so for `make -C`).
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: demo test test-slow test-faults test-torch install lint audit format lock clean help

demo: $(STAMP)  ## Pre-train, fine-tune and evaluate on synthetic data; the last line is the report
	@$(PY) -m cmunet_jax.main --config configs/quickstart.py --workdir $(WORKDIR)

test: $(STAMP)  ## Run the tests (PYTEST_ARGS='-k name' picks some)
	@$(PY) $(PYTEST) $(PYTEST_ARGS)

test-slow: $(STAMP)  ## Run the tests marked slow, which `make test` leaves out
	@$(PY) $(PYTEST) -m slow $(PYTEST_ARGS)

test-faults: $(STAMP)  ## Run the tests marked faults: kills, full disks, damage, fuzzing (minutes)
	@$(PY) $(PYTEST) -m faults $(PYTEST_ARGS)

# Beside the pinned packages, which it sees; a build with CUDA would be 5 GB for a few seconds on a CPU.
TORCH := 'torch==2.13.0' onnx onnxscript onnxruntime
TORCH_TESTS := tests/benchmark/test_torch.py $(wildcard tests/interop/test_*torch*.py tests/interop/test_*onnx*.py)
TORCH_PIP := .venv-torch/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock

test-torch: $(STAMP)  ## Run the tests that need PyTorch and ONNX, where a CPU build can be installed
	@$(MAKE) --silent VENV=.venv-torch PYTHON=$(PY) .venv-torch/bin/python
	@$(PY) -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' \
	  > "$$(.venv-torch/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/pinned.pth"
	@if ! $(TORCH_PIP) --dry-run --report .venv-torch/report.json $(TORCH) >/dev/null 2>&1; then \
	  echo "skipped: PyTorch cannot be installed here"; \
	elif grep -qi '"name": "nvidia' .venv-torch/report.json; then \
	  echo "skipped: only a build of PyTorch with CUDA is offered here"; \
	else \
	  $(TORCH_PIP) $(TORCH) && .venv-torch/bin/python -c 'import onnx, onnxruntime, onnxscript, torch' && \
	  .venv-torch/bin/python -m pytest -p no:xdist -m '' $(TORCH_TESTS) $(PYTEST_ARGS); \
	fi

install: $(STAMP)  ## Only make the virtual environment (ACCELERATOR=cuda or tpu for those)

lint: $(STAMP)  ## Check style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy $(CODE)

audit: $(STAMP)  ## Ask a vulnerability service about the pinned packages, where one can be reached
	@$(PY) -m pip check
	@$(MAKE) --silent VENV=.venv-audit .venv-audit/bin/python
	@.venv-audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit || true
	@$(PY) -m tests.audit .venv-audit/bin/python

format: $(STAMP)  ## Apply the formatter and the fixes that ruff can make
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# A shim that names a version which is not installed exists but fails, so each candidate is run.
$(PY):
	@found=; for python in $(PYTHONS); do \
	  if $$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; \
	  then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "error: no Python 3.11, 3.12 or 3.13 with the venv module was found. Install one (on Debian: python3 and python3-venv) or name it: make PYTHON=/path/to/python3" >&2; \
	  exit 1; \
	fi; \
	echo "Making $(VENV) with $$($$found --version)"; \
	$$found -m venv $(VENV)

# The stamp is written last: an interrupted installation is repeated.
$(STAMP): $(PY) requirements.lock pyproject.toml
	@echo "Installing the pinned packages into $(VENV) (a few minutes, once)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check -c requirements.lock \
	  --editable '.$(if $(ACCELERATOR),[$(ACCELERATOR)])'
	@touch $@

lock:  ## Refresh requirements.lock from pyproject.toml (UPGRADE=1: to the newest versions)
	@$(MAKE) --silent VENV=.venv-lock .venv-lock/bin/python
	@.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	@.venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --extra dev --extra fuzz \
	  --no-emit-index-url --no-annotate --custom-compile-command 'make lock' \
	  $(if $(UPGRADE),--upgrade) --output-file requirements.lock pyproject.toml
	@echo "requirements.lock: $$(grep -c == requirements.lock) pins"

clean:  ## Remove virtual environments, caches and build folders; data/ and runs/ stay
	rm -rf .venv .venv-lock .venv-audit .venv-torch .cache build dist ./*.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './data/*' -not -path './runs/*' -prune -exec rm -rf {} +

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
