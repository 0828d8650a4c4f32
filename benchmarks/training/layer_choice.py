"""Does the untrained alpha of a cut tell which layers make the best draft? Trains three cuts of SmolLM2 alike.

    python benchmarks/training/layer_choice.py --output /tmp/layer-choice

Cuts 4 of 30 layers evenly, from both ends, and greedily by untrained alpha; trains each for 60 steps on the same target
rollouts; reports held-out alpha at 0, 20, 40 and 60 steps. About 30 minutes on two cores. Writes
benchmarks/results/layer_choice.json, whose content is also the last line of stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.support.commands import run_command
from benchmarks.support.history import read_history
from benchmarks.support.paths import target_file
from benchmarks.support.results import write_result

TRAINING = (
    "--method distillspec --target-fraction 1 --steps 60 --eval-every 20 --max-new-tokens 96 --learning-rate 5e-4"
)
CHOICES = ("greedy", "even", "ends")
REPORTED = ("step", "heldout_alpha_greedy", "heldout_alpha_sampled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    folder: Path = parser.parse_args().output
    target = ["--target", str(target_file())]
    # The first run writes the target's answers; the others read them.
    rollouts: list[str] = []
    result: dict[str, Any] = {}
    for choice in CHOICES:
        cut, trained = folder / f"cut-{choice}", folder / f"trained-{choice}"
        run_command("init-draft", *target, "--layers", "4", "--choose", choice, "--output", str(cut))
        pair = [*target, "--draft", str(cut), "--output", str(trained)]
        run_command("train-draft", *pair, *TRAINING.split(), *rollouts)
        rollouts = rollouts or ["--rollouts", str(trained / "rollouts")]
        result[choice] = {
            "layers": json.loads((cut / "init_draft.json").read_text())["layers"],
            "heldout": [{name: entry[name] for name in REPORTED} for entry in read_history(trained)],
        }
    write_result("layer_choice.json", result, indent=2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
