"""Does the untrained alpha of a cut tell which layers make the best draft? Trains three cuts of SmolLM2 alike.

    python benchmarks/layer_choice.py --output /tmp/layer-choice

Cuts 4 of 30 layers evenly, from both ends, and greedily by untrained alpha; trains each for 60 steps on the same target
rollouts; reports held-out alpha at 0, 20, 40 and 60 steps. About 30 minutes on two cores. Writes
benchmarks/results/layer_choice.json, whose content is also the last line of stdout.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from smollm2 import RESULTS, run, target_file

STEPS = "--method distillspec --target-fraction 1 --steps 60 --eval-every 20 --max-new-tokens 96 --learning-rate 5e-4"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    folder = parser.parse_args().output
    target, found, rollouts = str(target_file()), {}, []
    for choice in ("greedy", "even", "ends"):
        cut, trained = folder / f"cut-{choice}", folder / f"trained-{choice}"
        run("init-draft", "--target", target, "--layers", "4", "--choose", choice, "--output", str(cut))
        run("train-draft", "--target", target, "--draft", str(cut), "--output", str(trained), *STEPS.split(), *rollouts)
        rollouts = ["--rollouts", str(folder / "trained-greedy" / "rollouts")]
        history = [json.loads(line) for line in (trained / "history.jsonl").read_text().splitlines()]
        found[choice] = {
            "layers": json.loads((cut / "init_draft.json").read_text())["layers"],
            "heldout": [
                {name: entry[name] for name in ("step", "heldout_alpha_greedy", "heldout_alpha_sampled")}
                for entry in history
            ],
        }
    (RESULTS / "layer_choice.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
