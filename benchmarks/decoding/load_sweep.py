"""From which batch on does a draft stop paying: predicted from the costs of steps, and measured.

    python benchmarks/decoding/load_sweep.py --name mails --target DIR --draft DIR --prompts FILE --output DIR \\
        --what "the pair in words"

Measures the batch sizes 1 to 16 as `specdistill bench --batch-sizes` does, on one thread; nothing else may run
meanwhile. Finished sizes are kept in --output, so an interrupted run goes on. Each pair is one entry of
benchmarks/results/load.json; those of other names stay. Without --target it is SmolLM2 as it is.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.support.paths import RESULTS, target_file
from benchmarks.support.results import load_result, write_result, write_result_to
from specdistill import BenchConfig
from specdistill.data.prompts import encode_all, load_prompts, spread_over_categories
from specdistill.decoding.answers import write_answers
from specdistill.decoding.costs import Costs
from specdistill.decoding.proof import pack_proven
from specdistill.evaluation import acceptance
from specdistill.evaluation.interruption import Interruption
from specdistill.evaluation.load import measure_size
from specdistill.evaluation.load_section import load_section
from specdistill.evaluation.measured import Models
from specdistill.evaluation.report_load import LoadRow
from specdistill.evaluation.statistics import Estimate, ratio
from specdistill.evaluation.to_json import to_json
from specdistill.models import load_pair
from specdistill.report.progress import TerminalProgress

SIZES = (1, 2, 4, 8, 16)
RESULT = "load.json"


def predict(config: BenchConfig, models: Models, encoded: list[list[int]], path: Path) -> dict[int, float]:
    """Draft length -> predicted tokens per target call, from the target's own answers; kept in a file."""
    if not path.exists():
        prompts = spread_over_categories(load_prompts(config.prompts), config.num_prompts)
        progress = TerminalProgress()
        answers = write_answers(
            models.target, prompts, encoded, config.sampling, config.max_new_tokens, config.timing.seed, progress
        )
        records = acceptance.score(models.target, models.draft, answers, config.sampling)
        lengths = range(1, config.acceptance.max_draft_tokens + 1)
        taus = {n: ratio(*acceptance.predicted_tau(records, config.predicting_rule, n)).mean for n in lengths}
        write_result_to(path, {str(length): tau for length, tau in taus.items()})
    return {int(length): tau for length, tau in json.loads(path.read_text()).items()}


def read_size(content: dict[str, Any]) -> tuple[LoadRow, Costs]:
    """A row and its costs from a file of --output."""
    row = dict(content["row"])
    low, high = (float("nan") if end is None else end for end in row["speedup"]["ci95"])
    row["speedup"] = Estimate(row["speedup"]["mean"], low, high)
    row["predicted_by_length"] = {int(length): value for length, value in row["predicted_by_length"].items()}
    costs = content["costs"]
    checks = {int(tokens): cost for tokens, cost in costs["verify_cost"].items()}
    return LoadRow(**row), Costs(costs["target_step_seconds"], costs["draft_step_seconds"], checks)


def sweep(options: argparse.Namespace, config: BenchConfig) -> dict[str, Any]:
    """The entry of one pair; sizes whose files are there are not measured again."""
    pair = load_pair(config.target, config.drafter)
    packing = pack_proven([pair.target, pair.draft], options.pack) if options.pack != "none" else None
    models = Models(pair.target, pair.draft, packing)
    prompts = spread_over_categories(load_prompts(config.prompts), config.num_prompts)
    room = pair.target.max_context - config.max_new_tokens
    encoded = encode_all(prompts, pair.target.tokenizer, room, pair.target.vocab_size)
    predicted = predict(config, models, encoded, options.output / "predicted.json")
    context = sorted(map(len, encoded))[len(encoded) // 2] + config.max_new_tokens // 2
    rows: dict[int, LoadRow] = {}
    costs: dict[int, Costs] = {}
    for size in options.sizes:
        path = options.output / f"batch-{size}.json"
        if not path.exists():
            progress = TerminalProgress()
            stop = Interruption(progress.say)
            row, measured = measure_size(config, models, encoded, size, predicted, context, (), progress, stop)
            if stop.error is not None:
                raise stop.error
            write_result_to(path, {"row": to_json(row), "costs": to_json(measured)})
        rows[size], costs[size] = read_size(json.loads(path.read_text()))
        print(f"batch {size}: predicted {rows[size].predicted_speedup:.3f}, measured {rows[size].speedup}", flush=True)
    section = to_json(load_section(rows, costs, predicted))
    facts = {"torch": torch.__version__, "context": context, "temperature": config.sampling.temperature}
    facts["pack"] = options.pack
    return {"pair": options.what, "max_new_tokens": config.max_new_tokens} | facts | section


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="key of the pair in the result")
    parser.add_argument("--what", required=True, help="the pair in words, for the table")
    parser.add_argument("--target", help="SmolLM2 where it is left out")
    parser.add_argument("--draft", required=True)
    parser.add_argument("--prompts", default="builtin:heldout")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--max-draft-tokens", type=int, default=8)
    parser.add_argument("--num-prompts", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--pack", default="float32", help="see `bench --pack`; a CPU checks several tokens for less so")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    config = BenchConfig.flat(
        target=options.target or str(target_file()),
        draft=options.draft,
        prompts=options.prompts,
        num_prompts=options.num_prompts,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        pack=options.pack,
        max_draft_tokens=options.max_draft_tokens,
    )
    entry = sweep(options, config)
    known = load_result(RESULT) if (RESULTS / RESULT).exists() else {}
    write_result(RESULT, known | {options.name: entry})
    print(json.dumps(entry))


if __name__ == "__main__":
    main()
