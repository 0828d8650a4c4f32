"""Training runs and benches of the studies, each made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.studies.bench_runs import BenchRun
from benchmarks.studies.folders import StudyFolder, has_weights, is_finished
from benchmarks.support.bench_report import BenchReport
from benchmarks.support.commands import run_command
from specdistill import TrainConfig, train_draft
from specdistill.report.progress import TerminalProgress


def train_once(run: Path, start: Path, **settings: Any) -> None:
    """Trains a draft on one thread and keeps its last step unless told otherwise; leaves a finished run as it is.

    Args:
        run: Directory of the run.
        start: The draft to begin with.
        settings: Flat settings of `TrainConfig`.
    """
    if is_finished(run):
        return
    print(f"\n{run.name}: {settings}", flush=True)
    settings = {"keep": "last", "resume": True, "threads": 1} | settings
    config = TrainConfig.flat(draft=str(start), output=str(run), **settings)
    train_draft(config, TerminalProgress())


def cut_once(target: str, output: Path, *flags: str) -> None:
    """Cuts a draft by `specdistill init-draft`, evenly and with a head of 8192 ids, where it is missing."""
    if not has_weights(output):
        shape = ["--vocab-keep", "8192", "--choose", "even"]
        run_command("init-draft", "--target", target, "--output", str(output), *shape, *flags)


def bench_once(folder: StudyFolder, target: str, run: BenchRun, max_new_tokens: int) -> None:
    """Benches a row's first seed on held-out prompts, where that was trained and not yet benched."""
    draft, report = folder.run(run.row, 0), folder.bench_report(run)
    if is_finished(draft) and not report.exists():
        pair = ["--target", target, "--draft", str(draft), "--pack", run.pack, "--threads", "1"]
        size = ["--num-prompts", "12", "--latency-prompts", "10", "--max-new-tokens", str(max_new_tokens)]
        prompts = ["--prompts", str(folder.prompts("heldout")), "--temperature", str(run.temperature)]
        run_command("bench", *pair, *size, *prompts, "--json", str(report))


def bench_result(report: BenchReport) -> dict[str, Any]:
    """Entries of a bench report that the tables and plots show."""
    return {
        "num_draft_tokens": report.num_draft_tokens,
        "alpha": report.alpha[report.predicting_rule],
        "mean_acceptance_length": report.mean_acceptance_length,
        "predicted_mean_acceptance_length": report.predicted_mean_acceptance_length,
        "cost_ratio": report.cost_ratio,
        "verify_cost": report.verify_cost,
        "predicted_speedup": report.predicted_speedup,
        "perfect_draft_speedup": report.perfect_draft_speedup,
        "speedup": report.speedup,
        "verdict": report.verdict,
        "greedy_identical": report.greedy_identical,
    }


def bench_results(folder: StudyFolder, runs: tuple[BenchRun, ...]) -> dict[str, Any]:
    """Run's name -> result, for every run that was benched."""
    benched = sorted((run for run in runs if folder.bench_report(run).exists()), key=lambda run: run.name)
    return {run.name: bench_result(BenchReport.read(folder.bench_report(run))) for run in benched}
