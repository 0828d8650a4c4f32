"""What real engines count beside what we predict: one draft in vLLM, llama.cpp, transformers and our decoder.

    make .venv-vllm/.installed      (once: vLLM's CPU build and xllamacpp, in an environment of their own)
    .venv-vllm/bin/python benchmarks/engines.py --target DIR --target-gguf FILE --draft DIR --prompts FILE --output DIR

Exports the draft for each engine, then runs `specdistill bench --engine` with the same prompts, temperatures and draft
length in each. Finished rows are kept in --output, so an interrupted run goes on. One thread; nothing else may run
meanwhile. llama.cpp serves --target-gguf: for a checkpoint that is no .gguf yet, `specdistill export --format gguf`
writes one. Writes benchmarks/results/engines.json.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

# For the servers too, before any of them is started.
os.environ["OMP_NUM_THREADS"] = "1"

from smollm2 import RESULTS, run

GAMMA = 4
ENGINES = ("specdistill", "transformers", "vllm", "llama-cpp")
REPAIRED = "vllm-repaired"
"""vLLM 0.32's CPU build verifies wrongly above temperature 0; tests/engines/repaired_vllm says how, and mends it."""
REPAIR = Path(__file__).parents[1] / "tests/engines/repaired_vllm"


def bench(options: argparse.Namespace, engine: str, temperature: float) -> dict:
    out = options.output / f"{engine}-{temperature}.json"
    if not out.exists():
        draft, target = str(options.output / "draft-vllm"), str(options.target)
        if engine == "llama-cpp":
            draft, target = str(options.output / "draft.gguf"), str(options.target_gguf)
        more = ["--engine-args=--enforce-eager"] if engine.startswith("vllm") else []
        # Read by the servers' interpreters when they start.
        os.environ["PYTHONPATH"] = str(REPAIR) if engine == REPAIRED else ""
        run(
            "bench", "--engine", engine.removesuffix("-repaired"), "--target", target, "--draft", draft,
            "--prompts", options.prompts, "--num-prompts", str(options.num_prompts),
            "--max-new-tokens", str(options.max_new_tokens), "--num-draft-tokens", str(GAMMA),
            "--temperature", str(temperature), "--threads", "1", "--json", str(out), *more,
        )  # fmt: skip
    return json.loads(out.read_text())


def row(report: dict) -> dict:
    """What the table shows of a report."""
    acceptance, setup = report["acceptance"], report["setup"]
    predicted = acceptance["predicted_mean_acceptance_length"][str(GAMMA)]
    return {
        "version": setup.get("engine_version", "specdistill"),
        "rule": setup["rule"],
        "alpha": acceptance["alpha"][setup["rule"]],
        "mean_acceptance_length": acceptance["mean_acceptance_length"],
        "predicted_mean_acceptance_length": predicted,
        "measured_over_predicted_minus_1": acceptance.get("prediction", {}).get("measured_over_predicted_minus_1"),
        "counters": acceptance.get("counters"),
        "by_position": acceptance["by_position"],
        "speedup": report["latency"]["speedup"],
        "baseline_tokens_per_second": report["latency"]["baseline"]["tokens_per_second"],
        "speculative_tokens_per_second": report["latency"]["speculative"]["tokens_per_second"],
        "round_cost": report["economics"]["round_cost"][str(GAMMA)],
        "greedy_identical": report["lossless"]["greedy_identical"],
        "differences": report["lossless"]["differences"],
        "prompts": setup["latency_prompts"],
        "verdict": report["economics"]["verdict"],
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
    pair = ["--target", str(options.target), "--draft", str(options.draft)]
    if not (options.output / "draft-vllm").exists():
        run("export", *pair, "--format", "vllm", "--output", str(options.output / "draft-vllm"))
    if not (options.output / "draft.gguf").exists():
        gguf = ["--target-gguf", str(options.target_gguf), "--output", str(options.output / "draft.gguf")]
        run("export", *pair, "--format", "gguf", *gguf)
    rows = {
        f"{temperature}": {engine: row(bench(options, engine, temperature)) for engine in engines}
        for temperature, engines in ((0.0, ENGINES), (1.0, (*ENGINES, REPAIRED)))
    }
    found = {"pair": options.what, "num_draft_tokens": GAMMA, "max_new_tokens": options.max_new_tokens}
    (RESULTS / "engines.json").write_text(json.dumps(found | {"temperatures": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
