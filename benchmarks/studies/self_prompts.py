"""Prompts that SmolLM2 writes itself: how many are usable, of which kinds, and what a draft learns from them.

    python benchmarks/studies/self_prompts.py --output DIR [--seeds 0 1 2]      (resumable: finished parts are kept)

One 4-layer cut of SmolLM2-135M-Instruct is trained twice with the same budget, by forward KL on the target's sampled
answers: to the 84 built-in training prompts, twelve each, and to 920 prompts that the target wrote itself, one each.
Eight prompts of either set are held out, which leaves 912 answers of 48 tokens at most; the 200 steps of 8 answers see
each once or twice. Alpha is measured on the target's sampled answers to the 84 built-in held-out prompts, which are of
the kind of the built-in training ones. Intervals are paired over them, seeds together. Counts, lengths and kinds are
those of `--prompts self:1000`, which begins with the same 920.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.studies.folders import StudyFolder
from benchmarks.studies.prompt_kinds import shares
from benchmarks.studies.runs import cut_once, train_once
from benchmarks.studies.scores import PromptSums, Scores, alpha, alpha_by_seed, alpha_over
from benchmarks.studies.self_text import MAX_NEW_TOKENS, OWN, SELF, write_heldout, write_target_answers
from benchmarks.support.history import read_history
from benchmarks.support.paths import target_file
from benchmarks.support.results import write_result
from specdistill.data.prompts import load_prompts
from specdistill.decoding.self_prompts import Weights, prompts_file
from specdistill.models import load_model
from specdistill.report.progress import TerminalProgress
from specdistill.settings.chat import ChatSettings

LAYERS = 4
COUNTED = "self:1000"
ROWS: dict[str, dict[str, Any]] = {
    "builtin": {"prompts": "builtin:train"},
    "self": OWN,
}
ANSWERS = {"builtin": 12, "self": 1}
"""Answers per prompt, equally many in all."""
BUDGET = {
    **{"method": "distillspec", "target_fraction": 1.0, "steps": 200, "batch_size": 8, "heldout_prompts": 8},
    **{"eval_every": 50, "max_new_tokens": MAX_NEW_TOKENS, "patience": 0},
}


def answers_of(folder: StudyFolder, row: str) -> Path:
    """The target's answers to a row's prompts."""
    return folder.root / f"answers-{row}"


def prepare(folder: StudyFolder) -> None:
    """The held-out prompts, the cut and both sets of answers, each where it is missing."""
    write_heldout(folder.prompts("heldout"))
    cut_once(str(target_file()), folder.cut(LAYERS), "--layers", str(LAYERS))
    for row, prompts in ROWS.items():
        write_target_answers(answers_of(folder, row), prompts, ANSWERS[row])


def written_prompts() -> dict[str, Any]:
    """Counts of the target's own prompts, their lengths and kinds, beside those of the built-in ones."""
    target, weights = str(target_file()), Weights("cpu", "float32")
    file = Path(prompts_file(COUNTED, "train", SELF, ChatSettings(), target, weights, TerminalProgress()))
    counts = json.loads(file.with_suffix(".counts.json").read_text())
    texts = {
        name: [str(prompt.messages[-1]["content"]) for prompt in load_prompts(source)]
        for name, source in (("self", str(file)), ("builtin", "builtin:train"))
    }
    tokenizer = load_model(str(target_file())).tokenizer
    lengths = {name: [len(tokenizer(text)["input_ids"]) for text in both] for name, both in texts.items()}
    usable = counts["train"] + counts["heldout"]
    return {
        "counts": counts,
        "usable": usable / counts["draws"],
        "distinct": usable / (usable + counts["duplicate"]),
        "tokens": {name: {"mean": mean(both), "median": median(both)} for name, both in lengths.items()},
        "kinds": {name: shares(both) for name, both in texts.items()},
        "distinct_first_three_words": {
            name: len({" ".join(text.lower().split()[:3]) for text in both}) / len(both) for name, both in texts.items()
        },
        "examples": texts["self"][:: len(texts["self"]) // 10],
    }


def row_entry(runs: list[Path], seeds: list[PromptSums], start: PromptSums) -> dict[str, Any]:
    """One row in the result file."""
    return {
        "seeds": len(seeds),
        "tokens_trained": [read_history(run)[-1]["tokens_seen"] for run in runs],
        "alpha": alpha(seeds),
        "alpha_by_seed": alpha_by_seed(seeds),
        "over_start": alpha_over(seeds, [start] * len(seeds)),
    }


def collect(folder: StudyFolder) -> dict[str, Any]:
    """Scores every finished run, as many seeds of each row as both have."""
    scores = Scores(folder, str(target_file()), MAX_NEW_TOKENS)
    start = scores.score_once(folder.cut(LAYERS))
    paired = list(zip(*(folder.finished_runs(row) for row in ROWS), strict=False))
    runs = {row: [pair[place] for pair in paired] for place, row in enumerate(ROWS)}
    seeds = {row: [scores.score_once(run) for run in runs[row]] for row in ROWS}
    return {
        "budget": BUDGET,
        "answers_per_prompt": ANSWERS,
        **scores.size,
        "torch": torch.__version__,
        "prompts": written_prompts(),
        "start": alpha([start]),
        "rows": {row: row_entry(runs[row], seeds[row], start) for row in ROWS},
        "self_over_builtin": alpha_over(seeds["self"], seeds["builtin"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    options = parser.parse_args()
    folder = StudyFolder(options.output)
    torch.set_num_threads(1)
    prepare(folder)
    for seed in options.seeds:
        for row, prompts in ROWS.items():
            stored = {"target": str(target_file()), "rollouts": str(answers_of(folder, row)), "seed": seed}
            train_once(folder.run(row, seed), folder.cut(LAYERS), **stored, **prompts, **BUDGET)
    result = collect(folder)
    write_result("self_prompts.json", result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
