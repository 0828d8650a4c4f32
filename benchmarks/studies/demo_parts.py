"""The steps of `make demo`, and the four lines at its end."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.studies.service_mail import write_records
from benchmarks.support.bench_report import BenchReport, StoredEstimate
from benchmarks.support.commands import run_command

TRAINING_SEED, HELDOUT_SEED = 2, 3
"""Seeds of the mails; the adapter was trained on those of seed 1 and judged on those of seed 4."""

PACKED = ("--pack", "float32") if platform.machine() in ("x86_64", "AMD64") else ()
"""Makes checking several tokens cheaper on an x86 CPU, and changes no token."""


@dataclass(frozen=True)
class DemoSize:
    """How much is made and measured."""

    layers: int = 2
    vocab_keep: int = 8192
    mails: int = 640
    heldout: int = 24
    steps: int = 80
    batch_size: int = 8
    heldout_in_training: int = 8
    calibration_prompts: int = 16
    max_new_tokens: int = 160
    timed: int = 8


DEMO_SIZE = DemoSize()


def run_demo(target: Sequence[str], folder: Path, size: DemoSize) -> BenchReport:
    """Cuts a draft, trains it and benches it against the target and against free drafting.

    Args:
        target: Flags that name the target.
        folder: New folder for mails, drafts and the report.
        size: How much.
    """
    folder.mkdir(parents=True)
    mails, heldout = folder / "mails.jsonl", folder / "heldout.jsonl"
    write_records(mails, size.mails, TRAINING_SEED)
    write_records(heldout, size.heldout, HELDOUT_SEED)
    cut, draft, report = folder / "cut", folder / "draft", folder / "report"
    tokens = str(size.max_new_tokens)
    print("\n1/3: a draft is cut out of the target")
    run_command(
        *("init-draft", *target, "--output", str(cut), "--prompts", str(mails)),
        *("--layers", str(size.layers), "--choose", "even", "--vocab-keep", str(size.vocab_keep)),
        *("--calibration-prompts", str(size.calibration_prompts), "--calibration-tokens", tokens),
    )
    print("\n2/3: it learns the target's job")
    run_command(
        *("train-draft", *target, "--draft", str(cut), "--output", str(draft), "--prompts", str(mails)),
        *("--method", "sft", "--steps", str(size.steps), "--batch-size", str(size.batch_size)),
        *("--heldout-prompts", str(size.heldout_in_training), "--max-new-tokens", tokens, "--rule", "greedy"),
        *("--eval-every", str(max(1, size.steps // 2))),
    )
    print("\n3/3: what it is worth, beside the untrained one and beside copying from the text")
    run_command(
        *("bench", *target, "--draft", str(draft), "--compare", str(cut), "--prompts", str(heldout)),
        *("--num-prompts", "0", "--latency-prompts", str(size.timed), "--max-new-tokens", tokens, "--threads", "1"),
        *PACKED,
        *("--json", f"{report}.json", "--html", f"{report}.html"),
    )
    return BenchReport.read(Path(f"{report}.json"))


def demo_lines(report: BenchReport, size: DemoSize) -> list[str]:
    """Four lines: what was done, what it gained, what copying gives, and how to go on; every number is the report's."""
    head = report.content["draft"]["head_size"]
    alpha = report.alpha[report.predicting_rule]["mean"]
    same = "with the same output" if report.greedy_identical else "and the output differs, see the report"
    return [
        f"done:    a draft of {size.layers} layers of the target, with a head of {head:,} ids, learned from "
        f"{size.steps * size.batch_size:,} answers; the target keeps {alpha:.0%} of its tokens",
        f"gained:  {_times(report.speedup)} as fast as the target alone, on new mails, {same}: {report.verdict}",
        f"n-gram:  {_baselines(report)}",
        f"yours:   specdistill init-draft --target YOUR_MODEL --layers {size.layers} --vocab-keep {size.vocab_keep} "
        "--prompts YOUR_PROMPTS.jsonl --output cut   (each command names the next one)",
    ]


def _baselines(report: BenchReport) -> str:
    """Speed of n-gram and of what else was timed beside the draft, and which of all to serve."""
    ways = []
    for name, entry in report.content["baselines"].items():
        if "speedup" in entry:
            ways.append(f"{name} {_times(entry['speedup'])}")
        elif name == "ngram" and "predicted_speedup" in entry:
            ways.append(f"{name} {entry['predicted_speedup']:.2f}x (predicted)")
    best = report.content["recommendation"]["serve"]
    return f"copying from the text needs no draft: {'; '.join(ways)}. Fastest here: {best}"


def _times(value: StoredEstimate) -> str:
    low, high = value["ci95"]
    return f"{value['mean']:.2f}x [{low:.2f}, {high:.2f}]"
