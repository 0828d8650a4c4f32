"""`make bench` and `make bench-quick`: every claim of speed in the README and the docs, measured again.

    python benchmarks/run_all.py --output DIR            (`make bench`: two hours; nothing else may run meanwhile)
    python benchmarks/run_all.py --output DIR --quick    (`make bench-quick`: about a quarter of an hour)

Makes one draft of SmolLM2 by our own commands in two minutes (from a seed: the same on every machine of one kind) and
runs the scripts with it. --quick measures fewer points and says for each whether its interval overlaps the committed
one (agrees), or its mean lies within 5 % of it (close); it exits with 1 if one is further off. The full run replaces
the committed results, and `tables/readme_tables.py` then the tables. Some scripts need more than this and are left out:
`decoding/engines.py` and `ops/verify_traffic.py` (vLLM), `ops/kernel_speed.py` (a GPU), and the studies (hours).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.studies.folders import has_weights, is_finished
from benchmarks.support.commands import run_command, run_script
from benchmarks.support.paths import RESULTS, cut_folder, draft_folder, quick_result, target_file
from benchmarks.support.results import Interval, load_result

BETWEEN_RUNS = 0.05
"""Intervals are over the prompts or rounds of one run; two runs on one machine differ by a few per cent beyond them."""
BUSY_LOAD = 0.7
"""With a training run on the machine's other core, 4 of 26 ratios came out differently."""
QUICK_RESULTS = ("decoder_peers.json", "loss_op.json")
PAIR_IN_WORDS = "SmolLM2 and a 4-layer draft of two minutes"


def make_draft(folder: Path) -> Path:
    """A 4-layer draft with a trimmed head, distilled for some steps."""
    target, cut, draft = str(target_file()), cut_folder(folder), draft_folder(folder)
    if not has_weights(cut):
        size = ["--layers", "4", "--choose", "even", "--vocab-keep", "8192"]
        calibration = ["--calibration-prompts", "16", "--calibration-tokens", "32"]
        run_command("init-draft", "--target", target, "--output", str(cut), *size, *calibration)
    if not is_finished(draft):
        budget = ["--steps", "30", "--eval-every", "30", "--rollouts-per-prompt", "1", "--max-new-tokens", "48"]
        pair = ["--target", target, "--draft", str(cut), "--output", str(draft)]
        run_command("train-draft", *pair, *budget, "--batch-size", "4", "--heldout-prompts", "4", "--resume")
    return draft


def peer_claims(peers: dict[str, Any]) -> dict[str, Interval]:
    """Ratios of decoder_peers.json that both a quick and a full run have."""
    claims = {}
    for temperature, rows in peers["batch_1"].items():
        for length, row in rows.items():
            for ours, ratios in row["over_peers"].items():
                for peer, ratio in ratios.items():
                    name = f"{ours} over {peer}, temperature {temperature}, {length} draft tokens"
                    claims[name] = Interval.from_json(ratio)
    for temperature, row in peers["batch_8"].items():
        for contestant, ratio in row["over_one_by_one"].items():
            name = f"batch of 8 over one by one, {contestant}, temperature {temperature}"
            claims[name] = Interval.from_json(ratio)
    return claims


def loss_claims(loss_op: dict[str, Any]) -> dict[str, Interval]:
    """Ratios of loss_op.json that both a quick and a full run have."""
    return {
        f"loss op, {peer}'s time over ours, {case['tokens']} x {case['vocab']}": Interval.from_json(ratio)
        for case in loss_op["cases"]
        for peer, ratio in case["over_specdistill"].items()
    }


def compare(quick: dict[str, Interval], committed: dict[str, Interval]) -> int:
    """Prints quick next to committed estimates; the number of those that differ."""
    differing = 0
    for name, measured in quick.items():
        if name not in committed:
            print(f"        {name}: {measured.text()}, nothing committed to compare with")
            continue
        known = committed[name]
        agrees = measured.overlaps(known)
        close = abs(measured.mean / known.mean - 1) <= BETWEEN_RUNS
        differing += not (agrees or close)
        verdict = "agrees " if agrees else "close  " if close else "DIFFERS"
        print(f"{verdict} {name}: {measured.text()}, committed {known.text()}")
    return differing


def compare_results() -> int:
    """Compares the quick results with the committed ones; the number of estimates that differ."""
    quick_peers, quick_loss = (load_result(quick_result(name)) for name in QUICK_RESULTS)
    peers, loss = (load_result(name) for name in QUICK_RESULTS)
    if quick_loss["cpu"] != loss["cpu"]:
        print(f"this CPU has {quick_loss['cpu']}, the committed results are from {loss['cpu']}: expect other ratios")
    return compare(peer_claims(quick_peers) | loss_claims(quick_loss), peer_claims(peers) | loss_claims(loss))


def run_quick(pair: list[str], output: Path) -> int:
    """Measures fewer points and moves their results to `output`; the number of those that differ."""
    run_script("ops/loss_op.py", "--quick")
    run_script("decoding/decoder_peers.py", *pair, "--quick")
    differing = compare_results()
    for name in QUICK_RESULTS:
        (RESULTS / quick_result(name)).replace(output / quick_result(name))
    return differing


def run_full(pair: list[str], draft: str) -> None:
    """Replaces the committed results and the tables."""
    run_script("ops/loss_op.py")
    run_script("decoding/growth.py")
    run_script("decoding/long_prompts.py")
    run_script("decoding/decoder_peers.py", *pair)
    run_script("decoding/decoder_speed.py", "--draft", draft)
    run_script("decoding/verify_cost.py")
    run_script("training/training_step.py", "--draft", draft)
    run_script("training/plan_hours.py", "--drafts", draft)
    run_script("ops/kernel_report.py")
    run_script("tables/readme_tables.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="fewer points, compared with the committed results")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    if load > BUSY_LOAD:
        print(f"load average {load:.1f}: if something else runs here, stop it, for it slows contestants unequally")
    options.output.mkdir(parents=True, exist_ok=True)
    draft = str(make_draft(options.output))
    pair = ["--target", str(target_file()), "--draft", draft, "--what", PAIR_IN_WORDS]
    if not options.quick:
        return run_full(pair, draft)
    differing = run_quick(pair, options.output)
    sys.exit(f"{differing} measurements differ from the committed ones" if differing else 0)


if __name__ == "__main__":
    main()
