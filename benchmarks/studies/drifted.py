"""The case that every production user has: a target fine-tuned on one narrow job, and drafts for it.

    python benchmarks/drifted.py --output DIR                     (hours; resumable: what is finished is kept)
    python benchmarks/drifted.py --output DIR --rows fkl-2 fkl-8  (only these, e.g. in a second process)
    python benchmarks/drifted.py --output DIR --bench             (speed of each depth; nothing else may run meanwhile)
    python benchmarks/drifted.py --output DIR --collect           (compares, writes benchmarks/results/drifted.json)

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
import shutil
from pathlib import Path
from typing import Any

import torch
from methods import distil_into
from service_mail import records
from smollm2 import RESULTS, run, target_file
from study_scores import Columns, Scores, alpha, alpha_by_seed, bench_draft, bench_reports, finished, over

from specdistill import AnnotateConfig, GenerateConfig, annotate, generate
from specdistill.decoding import Sampling
from specdistill.evaluation.acceptance import ALPHA_RULES
from specdistill.files.atomic import write_text
from specdistill.models import load_model
from specdistill.models.gguf import convert
from specdistill.report.progress import TerminalProgress

MAX_NEW = 160
DEPTHS = (2, 4, 8)
ALIKE = {"max_new_tokens": MAX_NEW, "batch_size": 8, "patience": 0, "heldout_prompts": 8, "rule": "greedy"}
LABELS = {"method": "distillspec", "target_fraction": 1.0, "soft_labels": "labels"}
AFTER = {"steps": 60, "eval_every": 60, "start": "warm-4"}
ROWS: dict[str, dict[str, Any]] = {
    **{f"fkl-{depth}": LABELS | {"steps": 120, "eval_every": 40, "start": f"cut-{depth}"} for depth in DEPTHS},
    # With the target itself, twice as long: what the drafts that are benched in engines were trained by.
    "long-4": {
        "method": "distillspec",
        "target_fraction": 1.0,
        "rollouts": "answers",
        "steps": 240,
        "eval_every": 40,
        "heldout_prompts": 16,
        "start": "cut-4",
    },
    "warm-4": LABELS | {"steps": 60, "eval_every": 60, "start": "cut-4"},
    "more-fkl": LABELS | AFTER,
    "sft": {"method": "sft"} | AFTER,
    "seqkd": {"method": "seqkd", "rollouts": "answers"} | AFTER,
    "supervised-kd": {"method": "supervised-kd"} | AFTER,
    "gkd": {"method": "gkd", "rollouts": "answers"} | AFTER,
    "distillspec-jsd": {"method": "distillspec", "divergence": "jsd", "rollouts": "answers"} | AFTER,
    "distillspec-rkl": {"method": "distillspec", "divergence": "rkl", "rollouts": "answers"} | AFTER,
    "skd-25": {"method": "skd"} | AFTER,
}
"""Rows after `warm-4` start from it, all with 60 steps of 8 answers."""


def prepare(folder: Path) -> None:
    """Mails, target, its answers and labels, the cuts; each only where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("finetuning", 976, 1), ("train", 520, 2), ("heldout", 64, 3)):
        lines = "".join(json.dumps(each) + "\n" for each in records(count, seed))
        (folder / f"{name}.jsonl").write_text(lines)
    target = str(folder / "target")
    if not (folder / "target" / "config.json").exists():
        fine_tune(folder)
    common = {"target": target, "threads": 1}
    answers = GenerateConfig.flat(
        **common,
        output=str(folder / "answers"),
        prompts=str(folder / "train.jsonl"),
        rollouts_per_prompt=1,
        max_new_tokens=MAX_NEW,
    )
    generate(answers, TerminalProgress())
    labels = AnnotateConfig.flat(**common, rollouts=str(folder / "answers"), output=str(folder / "labels"), top_k=64)
    annotate(labels, TerminalProgress())
    for depth in DEPTHS:
        if not (folder / f"cut-{depth}" / "model.safetensors").exists():
            place = ["--output", str(folder / f"cut-{depth}"), "--layers", str(depth), "--vocab-keep", "8192"]
            calibration = ["--calibration-prompts", "24", "--calibration-tokens", "96", "--threads", "1"]
            prompts = ["--prompts", str(folder / "train.jsonl")]
            run("init-draft", "--target", target, *place, *calibration, *prompts, "--choose", "even")


def fine_tune(folder: Path) -> None:
    settings = ALIKE | {"method": "sft", "steps": 120, "eval_every": 60, "learning_rate": 2e-4}
    pair = {"target": str(target_file()), "prompts": str(folder / "finetuning.jsonl")}
    distil_into(folder / "finetuning", convert(target_file()), settings | pair)
    shutil.move(folder / "finetuning" / "last", folder / "target")


def stock(folder: Path) -> None:
    """A 4-layer draft of the target before it was fine-tuned, distilled on general prompts."""
    target, cut = str(target_file()), folder / "stock-cut"
    if not (cut / "model.safetensors").exists():
        run("init-draft", "--target", target, "--output", str(cut), "--layers", "4", "--choose", "even", "--vocab-keep",
            "8192", "--threads", "1")  # fmt: skip
    settings = ALIKE | {"method": "distillspec", "target_fraction": 1.0, "steps": 120, "eval_every": 40}
    answers = {"target": target, "max_new_tokens": 64, "rollouts_per_prompt": 4}
    distil_into(folder / "stock-4-seed0", cut, settings | answers)


def train(folder: Path, row: str, seed: int) -> None:
    settings = dict(ROWS[row])
    start = settings.pop("start")
    # Seeds of what goes on after the warm-up go on from the same seed's warm-up.
    start = folder / start if start.startswith("cut") else folder / f"{start}-seed{seed}" / "last"
    for key in ("rollouts", "soft_labels"):
        if key in settings:
            settings[key] = str(folder / settings[key])
    pair = {"target": str(folder / "target"), "prompts": str(folder / "train.jsonl"), "seed": seed}
    distil_into(folder / f"{row}-seed{seed}", start, ALIKE | settings | pair)


def bench(folder: Path) -> None:
    """Speed of each depth, greedy, as it is and packed; of the longest trained also sampled, and in float16."""
    for row in ("long-4", *(f"fkl-{depth}" for depth in DEPTHS)):
        more = [("none", 1), ("float16", 0)] if row == "long-4" else []
        for pack, temperature in (("none", 0), ("float32", 0), *more):
            bench_draft(folder, str(folder / "target"), row, pack, temperature, MAX_NEW)


def heldout(run_folder: Path) -> list[dict]:
    """The looks of a run at its own held-out prompts."""
    lines = [json.loads(line) for line in (run_folder / "history.jsonl").read_text().splitlines()]
    looks = [line for line in lines if "heldout_alpha_greedy" in line]
    return [{"step": look["step"], **{rule: look[f"heldout_alpha_{rule}"] for rule in ALPHA_RULES}} for look in looks]


def exact_match(scores: Scores, folder: Path) -> dict[str, float]:
    """Share of held-out mails whose JSON is right, of the target and of what it was fine-tuned from."""
    kept = folder / "exact-match.json"
    if not kept.exists():
        given = [(prompt.answer or "").strip() for prompt in scores.prompts]
        found = {}
        for name, model in (("fine-tuned", scores.target), ("before", load_model(str(target_file())))):
            greedy = scores.write(model, Sampling(temperature=0.0), 1)
            right = [model.decode(each.answer_ids).strip() == text for each, text in zip(greedy, given, strict=True)]
            found[name] = sum(right) / len(right)
        write_text(kept, json.dumps(found))
    return json.loads(kept.read_text())


def collect(folder: Path) -> None:
    scores = Scores(folder, str(folder / "target"), MAX_NEW)
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "budget": ALIKE,
        "rows": {},
        "exact_match": exact_match(scores, folder),
        **scores.size,
    }
    stock = scores.of(folder / "stock-4-seed0" / "last")
    for row, base in {"stock-4": stock, "cut-4": scores.of(folder / "cut-4")}.items():
        found["rows"][row] = {"alpha": alpha([base])}
    warm: list[Columns] = []
    for row in ("warm-4", *(each for each in ROWS if each != "warm-4")):
        places = [each / "last" for each in finished(folder, row)]
        if not places:
            continue
        parts = [scores.of(each) for each in places]
        entry = {
            "settings": ROWS[row],
            "seeds": len(parts),
            "alpha": alpha(parts),
            "alpha_by_seed": alpha_by_seed(parts),
            "over_stock": over(parts, [stock] * len(parts)),
            "heldout": heldout(places[0].parent),
        }
        if ROWS[row]["start"].startswith("cut"):
            entry["alpha_whole_head"] = alpha([scores.of(each, trimmed=False) for each in places])
        if row == "warm-4":
            warm = parts
        elif ROWS[row]["start"] == "warm-4":
            entry["over_warm"] = over(parts, warm[: len(parts)])
        found["rows"][row] = entry
        print(row, json.dumps(entry["alpha"]), flush=True)
    found["bench"] = bench_reports(folder)
    (RESULTS / "drifted.json").write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", nargs="*", choices=[*ROWS, "stock"], default=["stock", *ROWS])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--bench", action="store_true")
    parser.add_argument("--collect", action="store_true")
    options = parser.parse_args()
    if options.bench:
        return bench(options.output)
    if options.collect:
        return collect(options.output)
    prepare(options.output)
    if "stock" in options.rows:
        stock(options.output)
    rows = [row for row in ROWS if row in options.rows]
    for seed in options.seeds:
        # What others start from comes first.
        for row in sorted(rows, key=lambda row: row != "warm-4"):
            train(options.output, row, seed)


if __name__ == "__main__":
    main()
