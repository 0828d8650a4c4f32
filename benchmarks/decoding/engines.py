"""Acceptance that real engines count next to our prediction: one draft in vLLM, llama.cpp, transformers and ours.

    make .venv-vllm/.installed      (once: vLLM's CPU build and xllamacpp, in an environment of their own)
    .venv-vllm/bin/python benchmarks/decoding/engines.py --target DIR --target-gguf FILE --draft DIR --prompts FILE \\
        --output DIR --what "the pair in words"

Exports the draft for each engine, then runs `specdistill bench --engine` with the same prompts, temperatures and draft
length in each. Finished rows are kept in --output, so an interrupted run goes on. One thread; nothing else may run
meanwhile. llama.cpp serves --target-gguf: for a checkpoint that is no .gguf yet, `specdistill export --format gguf`
writes one. Writes benchmarks/results/engines.json.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# For the servers too, before any of them is started.
os.environ["OMP_NUM_THREADS"] = "1"

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.support.bench_report import BenchReport
from benchmarks.support.commands import run_command
from benchmarks.support.exported import GGUF_DRAFT, VLLM_DRAFT, export_draft
from benchmarks.support.paths import REPAIRED_VLLM
from benchmarks.support.results import write_result

NUM_DRAFT_TOKENS = 4


@dataclass(frozen=True)
class Engine:
    """A row of the table: an engine, and how it is run."""

    name: str
    """Name of the row."""
    engine: str
    """Argument of `--engine`."""
    reads_gguf: bool = False
    eager: bool = False
    repaired: bool = False
    """vLLM 0.32's CPU build verifies wrongly above temperature 0; tests/engines/repaired_vllm mends it."""


ENGINES = (
    Engine("specdistill", "specdistill"),
    Engine("transformers", "transformers"),
    Engine("vllm", "vllm", eager=True),
    Engine("llama-cpp", "llama-cpp", reads_gguf=True),
)
REPAIRED = Engine("vllm-repaired", "vllm", eager=True, repaired=True)
RUNS = ((0.0, ENGINES), (1.0, (*ENGINES, REPAIRED)))


def bench_engine(options: argparse.Namespace, engine: Engine, temperature: float) -> BenchReport:
    """Runs the bench where its report is missing."""
    path = options.output / f"{engine.name}-{temperature}.json"
    if not path.exists():
        draft, target = str(options.output / VLLM_DRAFT), str(options.target)
        if engine.reads_gguf:
            draft, target = str(options.output / GGUF_DRAFT), str(options.target_gguf)
        # Read by the servers' interpreters when they start.
        os.environ["PYTHONPATH"] = str(REPAIRED_VLLM) if engine.repaired else ""
        run_command(
            "bench", "--engine", engine.engine, "--target", target, "--draft", draft,
            "--prompts", options.prompts, "--num-prompts", str(options.num_prompts),
            "--max-new-tokens", str(options.max_new_tokens), "--num-draft-tokens", str(NUM_DRAFT_TOKENS),
            "--temperature", str(temperature), "--threads", "1", "--json", str(path),
            *(["--engine-args=--enforce-eager"] if engine.eager else []),
        )  # fmt: skip
    return BenchReport.read(path)


def result_row(report: BenchReport) -> dict[str, Any]:
    """Entries of a report that the table shows."""
    length = str(NUM_DRAFT_TOKENS)
    return {
        "version": report.engine_version,
        "rule": report.rule,
        "alpha": report.alpha[report.rule],
        "mean_acceptance_length": report.mean_acceptance_length,
        "predicted_mean_acceptance_length": report.predicted_mean_acceptance_length[length],
        "measured_over_predicted_minus_1": report.measured_over_predicted_minus_1,
        "counters": report.counters,
        "by_position": report.by_position,
        "speedup": report.speedup,
        "baseline_tokens_per_second": report.baseline_tokens_per_second,
        "speculative_tokens_per_second": report.speculative_tokens_per_second,
        "round_cost": report.round_cost[length],
        "greedy_identical": report.greedy_identical,
        "differences": report.differences,
        "prompts": report.latency_prompts,
        "verdict": report.verdict,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--target-gguf", type=Path, required=True)
    parser.add_argument("--draft", type=Path, required=True)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--num-prompts", type=int, default=24)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--what", required=True, help="the pair in words, for the table")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    export_draft(options.target, options.target_gguf, options.draft, options.output)
    temperatures = {
        f"{temperature}": {engine.name: result_row(bench_engine(options, engine, temperature)) for engine in engines}
        for temperature, engines in RUNS
    }
    header = {"pair": options.what, "num_draft_tokens": NUM_DRAFT_TOKENS, "max_new_tokens": options.max_new_tokens}
    write_result("engines.json", header | {"temperatures": temperatures})


if __name__ == "__main__":
    main()
