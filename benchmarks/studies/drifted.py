"""The case that every production user has: a target fine-tuned on one narrow job, and drafts for it.

    python benchmarks/studies/drifted.py --output DIR                     (hours; resumable: finished parts are kept)
    python benchmarks/studies/drifted.py --output DIR --rows fkl-2 fkl-8  (only these, e.g. in a second process)
    python benchmarks/studies/drifted.py --output DIR --bench             (speed of each depth; nothing else may run)
    python benchmarks/studies/drifted.py --output DIR --collect           (compares, writes results/drifted.json)

1. SmolLM2-135M-Instruct is fine-tuned to turn customers' mails into JSON (`service_mail.py`; seeds 1, 2 and 3 are the
   mails of fine-tuning, of distillation and held out). That is the target.
2. The target answers the mails of distillation once, and its distributions (top 64) are stored.
3. Drafts are cut out of the target with 2, 4 and 8 layers and distilled on the stored labels (`fkl-N`). From the
   4-layer one after 60 steps (`warm-4`) every method goes on for 60 steps more. `long-4` took 240 steps. `stock-4` is
   the draft that a user has *before*: distilled for the target as it was before fine-tuning, with as many steps.
4. Alpha of the last step's draft under every rule on the target's answers to held-out mails, with intervals paired over
   mails; head trimmed to 8192 ids and whole. Then `specdistill bench`, with and without packed weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.studies.bench_runs import DEPTHS, DRIFTED_RUNS
from benchmarks.studies.drifted_rows import DRIFTED_ROWS, MAX_NEW_TOKENS, SHARED, STOCK, STOCK_SETTINGS, WARM
from benchmarks.studies.folders import StudyFolder
from benchmarks.studies.runs import bench_once, bench_results, cut_once, train_once
from benchmarks.studies.scores import PromptSums, Scores, alpha, alpha_by_seed, alpha_over
from benchmarks.studies.service_mail import write_records
from benchmarks.support.history import read_history
from benchmarks.support.paths import target_file
from benchmarks.support.results import write_result
from specdistill import AnnotateConfig, GenerateConfig, annotate, generate
from specdistill.decoding import Sampling
from specdistill.evaluation.acceptance import ALPHA_RULES
from specdistill.files.atomic import write_text
from specdistill.models import load_model
from specdistill.models.gguf import convert
from specdistill.report.progress import TerminalProgress

MAILS = (("finetuning", 976, 1), ("train", 520, 2), ("heldout", 64, 3))
"""Set, number of mails, seed."""


def target_folder(folder: StudyFolder) -> Path:
    """The fine-tuned target."""
    return folder.root / "target"


def labels_folder(folder: StudyFolder) -> Path:
    """The target's distributions over its answers."""
    return folder.root / "labels"


def prepare(folder: StudyFolder) -> None:
    """Mails, target, its answers and labels, the cuts; each only where it is missing."""
    folder.root.mkdir(parents=True, exist_ok=True)
    for name, count, seed in MAILS:
        write_records(folder.prompts(name), count, seed)
    target = str(target_folder(folder))
    fine_tune(folder)
    prompts, answers = str(folder.prompts("train")), str(folder.answers)
    generation = GenerateConfig.flat(
        target=target,
        output=answers,
        prompts=prompts,
        rollouts_per_prompt=1,
        max_new_tokens=MAX_NEW_TOKENS,
        threads=1,
    )
    generate(generation, TerminalProgress())
    labels = str(labels_folder(folder))
    annotation = AnnotateConfig.flat(target=target, rollouts=answers, output=labels, top_k=64, threads=1)
    annotate(annotation, TerminalProgress())
    calibration = ["--calibration-prompts", "24", "--calibration-tokens", "96", "--threads", "1", "--prompts", prompts]
    for depth in DEPTHS:
        cut_once(target, folder.cut(depth), "--layers", str(depth), *calibration)


def fine_tune(folder: StudyFolder) -> None:
    """Makes the target, where it is missing."""
    settings = SHARED | {"method": "sft", "steps": 120, "eval_every": 60, "learning_rate": 2e-4}
    prompts = str(folder.prompts("finetuning"))
    train_once(target_folder(folder), convert(target_file()), target=str(target_file()), prompts=prompts, **settings)


def train_stock(folder: StudyFolder) -> None:
    """A 4-layer draft of the target before it was fine-tuned, distilled on general prompts."""
    target, cut = str(target_file()), folder.root / "stock-cut"
    cut_once(target, cut, "--layers", "4", "--threads", "1")
    settings = STOCK_SETTINGS | {"max_new_tokens": 64, "rollouts_per_prompt": 4}
    train_once(folder.run(STOCK, 0), cut, target=target, **settings)


def train_row(folder: StudyFolder, name: str, seed: int) -> None:
    """Trains one seed of a row. A row after the warm-up goes on from the warm-up of the same seed."""
    row = DRIFTED_ROWS[name]
    start = folder.run(WARM, seed) if row.cut_layers is None else folder.cut(row.cut_layers)
    stored = {"rollouts": str(folder.answers)} if row.stored_answers else {}
    stored |= {"soft_labels": str(labels_folder(folder))} if row.stored_labels else {}
    pair = {"target": str(target_folder(folder)), "prompts": str(folder.prompts("train"))}
    train_once(folder.run(name, seed), start, **(SHARED | row.settings | stored | pair), seed=seed)


def heldout_alpha(run: Path) -> list[dict[str, float]]:
    """A run's evaluations on its own held-out prompts."""
    entries = [entry for entry in read_history(run) if "heldout_alpha_greedy" in entry]
    return [
        {"step": entry["step"], **{rule: entry[f"heldout_alpha_{rule}"] for rule in ALPHA_RULES}} for entry in entries
    ]


def exact_match(scores: Scores, folder: StudyFolder) -> dict[str, float]:
    """Share of held-out mails whose JSON is right, of the target and of the model it was fine-tuned from."""
    file = folder.root / "exact-match.json"
    if not file.exists():
        expected = [(prompt.answer or "").strip() for prompt in scores.prompts]
        shares = {}
        for name, model in (("fine-tuned", scores.target), ("before", load_model(str(target_file())))):
            answers = scores.write(model, Sampling(temperature=0.0), 1)
            texts = [model.decode(answer.answer_ids).strip() for answer in answers]
            right = [text == wanted for text, wanted in zip(texts, expected, strict=True)]
            shares[name] = sum(right) / len(right)
        write_text(file, json.dumps(shares))
    return json.loads(file.read_text())


def collect(folder: StudyFolder) -> None:
    """Scores every finished run and writes the result file."""
    scores = Scores(folder, str(target_folder(folder)), MAX_NEW_TOKENS)
    result: dict[str, Any] = {
        "torch": torch.__version__,
        "budget": SHARED,
        "rows": {},
        "exact_match": exact_match(scores, folder),
        **scores.size,
    }
    stock = scores.score_once(folder.run(STOCK, 0))
    for name, sums in {STOCK: stock, "cut-4": scores.score_once(folder.cut(4))}.items():
        result["rows"][name] = {"alpha": alpha([sums])}
    warm: list[PromptSums] = []
    # The warm-up comes first: the others are compared with it.
    for name in (WARM, *(name for name in DRIFTED_ROWS if name != WARM)):
        runs = folder.finished_runs(name)
        if not runs:
            continue
        row = DRIFTED_ROWS[name]
        seeds = [scores.score_once(run) for run in runs]
        entry = {
            "settings": row.to_json(),
            "seeds": len(seeds),
            "alpha": alpha(seeds),
            "alpha_by_seed": alpha_by_seed(seeds),
            "over_stock": alpha_over(seeds, [stock] * len(seeds)),
            "heldout": heldout_alpha(runs[0]),
        }
        if row.cut_layers is not None:
            entry["alpha_whole_head"] = alpha([scores.score_once(run, trimmed=False) for run in runs])
        else:
            entry["over_warm"] = alpha_over(seeds, warm[: len(seeds)])
        if name == WARM:
            warm = seeds
        result["rows"][name] = entry
        print(name, json.dumps(entry["alpha"]), flush=True)
    result["bench"] = bench_results(folder, DRIFTED_RUNS)
    write_result("drifted.json", result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", nargs="*", choices=[*DRIFTED_ROWS, "stock"], default=["stock", *DRIFTED_ROWS])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--bench", action="store_true", help="measure speed: packed, sampled, by depth")
    parser.add_argument("--collect", action="store_true", help="score what is trained and write the result file")
    options = parser.parse_args()
    folder = StudyFolder(options.output)
    if options.bench:
        for run in DRIFTED_RUNS:
            bench_once(folder, str(target_folder(folder)), run, MAX_NEW_TOKENS)
        return
    if options.collect:
        return collect(folder)
    prepare(folder)
    if "stock" in options.rows:
        train_stock(folder)
    rows = [row for row in DRIFTED_ROWS if row in options.rows]
    for seed in options.seeds:
        # The warm-up comes first: other rows start from it.
        for row in sorted(rows, key=lambda row: row != WARM):
            train_row(folder, row, seed)


if __name__ == "__main__":
    main()
