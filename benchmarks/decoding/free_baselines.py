"""Compares a draft with what is free: every free way of drafting, the draft, and both, in three decoders.

    make .venv-vllm/.installed      (once: vLLM's CPU build and xllamacpp, in an environment of their own)
    .venv-vllm/bin/python benchmarks/decoding/free_baselines.py --name mails --what "the pair in words" \\
        --target DIR --target-gguf FILE --draft DIR --prompts FILE --output DIR

Runs `specdistill bench` in our decoder with packed weights, then `bench --engine` in vLLM and llama.cpp, greedy, with
the same prompts; each way takes turns with the plain target. Our bench chooses the draft's length, the engines take it.
Finished reports are kept in --output, so an interrupted run goes on. One thread; nothing else may run meanwhile. Each
pair is one entry of benchmarks/results/free_baselines.json; those of other names stay.
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
from benchmarks.support.paths import RESULTS
from benchmarks.support.results import load_result, write_result

RESULT = "free_baselines.json"


@dataclass(frozen=True)
class Decoder:
    """A decoder, and the free ways that it has."""

    name: str
    baselines: tuple[str, ...]
    """Arguments of `--engine-baselines`."""
    reads_gguf: bool = False
    engine_args: str = ""


OURS = "specdistill"
ENGINES = (
    Decoder("vllm", ("ngram", "suffix"), engine_args="--enforce-eager"),
    Decoder("llama-cpp", ("ngram", "ngram+draft"), reads_gguf=True),
)


def bench_ours(options: argparse.Namespace) -> BenchReport:
    """The bench in our decoder, with everything that is free timed; it chooses the draft's length."""
    path = options.output / f"{OURS}.json"
    if not path.exists():
        pair = ["--target", str(options.target), "--draft", str(options.draft)]
        # As one would decode on a CPU: checking several tokens costs far less so, and the output is the same.
        run_command("bench", *pair, "--pack", "float32", "--baselines", "all", *_shared(options, path))
    return BenchReport.read(path)


def bench_engine(options: argparse.Namespace, engine: Decoder, num_draft_tokens: int) -> BenchReport:
    """The bench in an engine."""
    path = options.output / f"{engine.name}.json"
    if not path.exists():
        run_command(
            "bench", *_exported(options, engine.reads_gguf), "--engine", engine.name,
            "--num-draft-tokens", str(num_draft_tokens), "--engine-baselines", *engine.baselines,
            *_shared(options, path), *([f"--engine-args={engine.engine_args}"] if engine.engine_args else []),
        )  # fmt: skip
    return BenchReport.read(path)


def _exported(options: argparse.Namespace, gguf: bool) -> list[str]:
    target, draft = (options.target_gguf, GGUF_DRAFT) if gguf else (options.target, VLLM_DRAFT)
    return ["--target", str(target), "--draft", str(options.output / draft)]


def _shared(options: argparse.Namespace, path: Path) -> list[str]:
    return [
        "--prompts", options.prompts, "--num-prompts", str(options.num_prompts),
        "--max-new-tokens", str(options.max_new_tokens), "--temperature", "0", "--threads", "1", "--json", str(path),
    ]  # fmt: skip


def ways(report: BenchReport) -> dict[str, dict[str, Any]]:
    """Way -> its row: the draft, and everything that was timed in turn with it."""
    length = report.num_draft_tokens
    draft = {
        "num_draft_tokens": length,
        "mean_acceptance_length": report.mean_acceptance_length,
        "predicted_mean_acceptance_length": report.predicted_mean_acceptance_length[str(length)],
        "speedup": report.speedup,
    }
    rows = {"draft": draft}
    for name, found in report.baselines.items():
        if found.get("speedup") is None:
            continue
        count = int(found["settings"]["num_draft_tokens"])
        predicted = found.get("predicted_mean_acceptance_length") or {}
        rows[name] = {
            "num_draft_tokens": count,
            "mean_acceptance_length": found["mean_acceptance_length"],
            "predicted_mean_acceptance_length": predicted.get(str(count)),
            "speedup": found["speedup"],
            "over_draft": found["over_draft"],
        }
    return rows


def entry(options: argparse.Namespace) -> dict[str, Any]:
    """One pair's entry of the result."""
    export_draft(options.target, options.target_gguf, options.draft, options.output)
    ours = bench_ours(options)
    reports = {OURS: ours}
    for engine in ENGINES:
        if engine.name in options.engines:
            reports[engine.name] = bench_engine(options, engine, ours.num_draft_tokens)
    decoders = {
        name: {
            "version": report.engine_version,
            "prompts": report.latency_prompts,
            "plain_tokens_per_second": report.baseline_tokens_per_second,
            "greedy_identical": report.greedy_identical,
            "recommendation": report.recommendation,
            "ways": ways(report),
        }
        for name, report in reports.items()
    }
    return {
        "pair": options.what,
        "max_new_tokens": options.max_new_tokens,
        "overlap": ours.overlap,
        "decoders": decoders,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="key of the pair in the result")
    parser.add_argument("--what", required=True, help="the pair in words, for the table")
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--target-gguf", type=Path, required=True)
    parser.add_argument("--draft", type=Path, required=True)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--engines", nargs="*", default=[engine.name for engine in ENGINES])
    parser.add_argument("--num-prompts", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    found = entry(options)
    known = load_result(RESULT) if (RESULTS / RESULT).exists() else {}
    write_result(RESULT, known | {options.name: found})


if __name__ == "__main__":
    main()
