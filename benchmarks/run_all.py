"""`make bench` and `make bench-quick`: every claim that the README and the docs make of speed, measured again.

    python benchmarks/run_all.py --output DIR            (`make bench`: two hours; nothing else may run meanwhile)
    python benchmarks/run_all.py --output DIR --quick    (`make bench-quick`: about a quarter of an hour)

Makes one draft of SmolLM2 by our own commands in two minutes (from a seed: the same on every machine of one kind) and
runs the scripts with it. --quick measures fewer points and says for each whether its interval overlaps the committed
one (agrees), or lies within 5 % of it (close); it ends with 1 if one is further off. The full run replaces the
committed results, `readme_tables.py` then the tables. Not among them, for what they need: `engines.py` and
`verify_traffic.py` (vLLM), `kernel_speed.py` (a GPU), and the studies (`smollm2.py`, `methods.py`, `drifted.py`:
hours).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from smollm2 import RESULTS, run, target_file

HERE = Path(__file__).parent
BETWEEN_RUNS = 0.05
"""Intervals are over the prompts or rounds of one run; two runs on one machine differ by a few per cent beyond them."""
BUSY = 0.7
"""Beside a training run on the machine's other core, 4 of 26 ratios came out otherwise."""


def quick_draft(folder: Path) -> Path:
    """A 4-layer draft with a trimmed head, distilled for some steps."""
    target, cut, draft = str(target_file()), folder / "cut", folder / "draft"
    size = ["--layers", "4", "--choose", "even", "--vocab-keep", "8192", "--calibration-prompts", "16"]
    if not (cut / "model.safetensors").exists():
        run("init-draft", "--target", target, "--output", str(cut), *size, "--calibration-tokens", "32")
    if not (draft / "summary.json").exists():
        budget = ["--steps", "30", "--eval-every", "30", "--rollouts-per-prompt", "1", "--max-new-tokens", "48"]
        pair = ["--target", target, "--draft", str(cut), "--output", str(draft)]
        run("train-draft", *pair, *budget, "--batch-size", "4", "--heldout-prompts", "4", "--resume")
    return draft


def script(name: str, *arguments: str) -> None:
    print(f"\n$ python benchmarks/{name} {' '.join(arguments)}", flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(HERE / name), *arguments], env=environment)
    if done.returncode:
        sys.exit(f"benchmarks/{name} failed")


def claims(prefix: str) -> dict[str, Any]:
    """Name -> estimate of every ratio that both a quick and a full run have."""
    found: dict[str, Any] = {}

    def load(name: str) -> dict[str, Any]:
        path = RESULTS / f"{prefix}{name}"
        return json.loads(path.read_text()) if path.exists() else {}

    peers = load("decoder_peers.json")
    for temperature, rows in peers.get("batch_1", {}).items():
        for gamma, row in rows.items():
            for ours, over in row["over_peers"].items():
                for name, value in over.items():
                    found[f"{ours} over {name}, temperature {temperature}, {gamma} draft tokens"] = value
    for temperature, row in peers.get("batch_8", {}).items():
        for name, value in row["over_one_by_one"].items():
            found[f"batch of 8 over one by one, {name}, temperature {temperature}"] = value
    for case in load("loss_op.json").get("cases", []):
        for name, value in case["over_specdistill"].items():
            found[f"loss op, {name}'s time over ours, {case['tokens']} x {case['vocab']}"] = value
    return found


def compare() -> int:
    """Prints quick beside committed; the number of those that differ."""
    quick, committed = claims("quick_"), claims("")
    here, there = (json.loads((RESULTS / f"{each}loss_op.json").read_text())["cpu"] for each in ("quick_", ""))
    if here != there:
        print(f"this CPU has {here}, the committed results are from {there}: expect other ratios")
    apart = 0
    for name, value in quick.items():
        low, high = value["ci95"]
        if name not in committed:
            print(f"        {name}: {value['mean']:.2f} [{low:.2f}, {high:.2f}], nothing committed beside it")
            continue
        known = committed[name]
        overlaps = low <= known["ci95"][1] and high >= known["ci95"][0]
        close = abs(value["mean"] / known["mean"] - 1) <= BETWEEN_RUNS
        apart += not (overlaps or close)
        verdict = "agrees " if overlaps else "close  " if close else "DIFFERS"
        print(
            f"{verdict} {name}: {value['mean']:.2f} [{low:.2f}, {high:.2f}], committed "
            f"{known['mean']:.2f} [{known['ci95'][0]:.2f}, {known['ci95'][1]:.2f}]"
        )
    return apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    if load > BUSY:
        print(f"load average {load:.1f}: if something else runs here, stop it, for it slows contestants unequally")
    options.output.mkdir(parents=True, exist_ok=True)
    draft = str(quick_draft(options.output))
    pair = ["--target", str(target_file()), "--draft", draft, "--what", "SmolLM2 and a 4-layer draft of two minutes"]
    if options.quick:
        script("loss_op.py", "--quick")
        script("decoder_peers.py", *pair, "--quick")
        apart = compare()
        for path in RESULTS.glob("quick_*.json"):
            path.replace(options.output / path.name)
        sys.exit(f"{apart} measurements differ from the committed ones" if apart else 0)
    script("loss_op.py")
    script("growth.py")
    script("decoder_peers.py", *pair)
    script("decoder_speed.py", "--draft", draft)
    script("verify_cost.py")
    script("training_step.py", "--draft", draft)
    script("plan_hours.py", "--drafts", draft)
    script("kernel_report.py")
    script("readme_tables.py")


if __name__ == "__main__":
    main()
