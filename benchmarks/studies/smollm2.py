"""The main job on a real model: cut a draft out of SmolLM2-135M-Instruct, distil it, bench before and after.

    python benchmarks/studies/smollm2.py --scale demo     about 7 minutes on two cores (this is `make demo-hard`)
    python benchmarks/studies/smollm2.py --scale study    about an hour; writes benchmarks/results/smollm2_*.json
    python benchmarks/studies/smollm2.py --scale study --cut DIR/cut --seed 1    trains that cut with another seed:
                                                                                 smollm2_seed1_*.json

Runs the commands that a user would type and prints each before it runs. Training and held-out prompts are the two
halves of the built-in set. Bench sees the held-out half only, and with every seed the same target's answers to it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.support.commands import run_command
from benchmarks.support.paths import DEMO, RESULTS, cut_folder, draft_folder, main_study_result, target_file


@dataclass(frozen=True)
class Scale:
    """Flags of each command."""

    init_draft: str
    train_draft: str
    bench: tuple[str, ...]


SCALES = {
    "demo": Scale(
        init_draft="--layers 4 --vocab-keep 8192 --calibration-prompts 24 --calibration-tokens 48 --probe-steps 12",
        train_draft="--method distillspec --rollouts-per-prompt 2 --max-new-tokens 64 --steps 60 --eval-every 20",
        bench=("--num-prompts 0 --latency-prompts 6 --max-new-tokens 48 --threads 1",),
    ),
    "study": Scale(
        init_draft="--layers 4 --vocab-keep 8192",
        train_draft="--method distillspec --heldout-prompts 12 --rollouts-per-prompt 6 --max-new-tokens 96 "
        "--steps 240 --eval-every 30 --target-fraction 0.8",
        bench=(
            "--num-prompts 0 --latency-prompts 12 --max-new-tokens 96 --threads 1 --temperature 0",
            "--num-prompts 0 --latency-prompts 12 --max-new-tokens 96 --threads 1 --temperature 1",
        ),
    ),
}


def keep_results(folder: Path, cut: Path, seed: int) -> None:
    """Copies the measurements and settings to benchmarks/results. The weights are too large to commit."""
    sources = {
        "history.jsonl": draft_folder(folder) / "history.jsonl",
        "greedy.json": folder / "bench-0.json",
        "sampled.json": folder / "bench-1.json",
    }
    # Other seeds share the cut of seed 0.
    if seed == 0:
        sources["init.json"] = cut / "init_draft.json"
    for name, source in sources.items():
        shutil.copyfile(source, RESULTS / main_study_result(seed, name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=list(SCALES), default="demo")
    parser.add_argument("--output", type=Path, default=DEMO, help="folder; each run makes a new one inside it")
    parser.add_argument("--cut", type=Path, help="train this cut instead of making one")
    parser.add_argument("--seed", type=int, default=0, help="seed of training; also names the study's results")
    options = parser.parse_args()
    scale = SCALES[options.scale]
    # The seed keeps apart two runs that start in the same second.
    folder = options.output / f"{options.scale}-seed{options.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    cut, draft = options.cut or cut_folder(folder), draft_folder(folder)
    target = ["--target", str(target_file())]
    start = time.perf_counter()
    if not options.cut:
        run_command("init-draft", *target, "--output", str(cut), *scale.init_draft.split())
    pair = [*target, "--draft", str(cut), "--output", str(draft)]
    run_command("train-draft", *pair, *scale.train_draft.split(), "--seed", str(options.seed))
    for number, flags in enumerate(scale.bench):
        report = folder / f"bench-{number}"
        files = ["--json", f"{report}.json", "--html", f"{report}.html"]
        run_command("bench", *target, "--draft", str(draft), "--compare", str(cut), *flags.split(), *files)
    if options.scale == "study":
        keep_results(folder, cut, options.seed)
    minutes = (time.perf_counter() - start) / 60
    print(f"\ndone in {minutes:.1f} minutes; open {(folder / 'bench-0.html').resolve()}")


if __name__ == "__main__":
    main()
