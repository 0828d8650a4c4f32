"""Our decoder, transformers' assisted generation and FlashSpec over the plain target, at every draft length.

    python benchmarks/decoding/decoder_peers.py --target T --draft DIR          (30 minutes; nothing else may run)
    python benchmarks/decoding/decoder_peers.py --target T --draft DIR --quick  (some minutes: lengths 1 and 4)

One pair, the same prompts, greedy and at temperature 1, batch 1, float32, one thread. Peers know neither trimmed heads
nor packed weights, so `specdistill` does without here too. `specdistill-packed` has its weights laid out for small
passes (`--pack float32`: the same numbers). `specdistill-trimmed` also drafts from its trimmed head, as a user would.
FlashSpec drafts with the model alone (its default also searches the prompt). Contestants take turns within each prompt
and the order rotates; tokens are counted in the same way, by the output. At temperature 1 the answers differ, and a
lucky contestant gets more tokens a round: the intervals show how much that matters. The plain target is our own loop;
`transformers-plain` shows how far apart the two plain loops are. Batch 8: the same prompts in batches, over one by one.
Engine efficiency is the share of `specdistill`'s time that is spent inside the two models.
Writes benchmarks/results/decoder_peers.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.decoding.contestants import OURS, PEERS, Contestants, Decode, Decoded
from benchmarks.support.interleaved import rotated
from benchmarks.support.paths import RESULTS, quick_result
from benchmarks.support.results import write_result_to
from specdistill.data.prompts import encode_all, load_prompts, spread_over_categories
from specdistill.decoding import Sampling
from specdistill.evaluation.statistics import ratio

TEMPERATURES = ("0", "1")
PROMPTS, NUM_NEW = 4, 32
BATCH_DRAFT_TOKENS = 4


def race(calls: dict[str, Decode], batches: list[list[list[int]]]) -> dict[str, Any]:
    """Tokens per second of each over `plain`, contestants in turn, with a 95 % interval over batches."""
    per_token: dict[str, list[float]] = {name: [] for name in calls}
    model_seconds, wall_seconds = 0.0, 0.0
    for decode in calls.values():
        decode(batches[0][:1], 0)
    for number, batch in enumerate(batches):
        for name in rotated(list(calls), number):
            start = time.perf_counter()
            decoded = calls[name](batch, 1000 * number)
            seconds = time.perf_counter() - start
            per_token[name].append(seconds / decoded.tokens)
            if name == "specdistill":
                model_seconds, wall_seconds = model_seconds + decoded.model_seconds, wall_seconds + seconds

    def over(ours: str, peers: list[str]) -> dict[str, Any]:
        return {peer: ratio(per_token[peer], per_token[ours]).to_json() for peer in peers}

    plain = per_token["plain"]
    return {
        "over_plain": {name: ratio(plain, per_token[name]).to_json() for name in calls if name != "plain"},
        "over_peers": {name: over(name, [peer for peer in PEERS if peer in calls]) for name in OURS if name in calls},
        "engine_efficiency": model_seconds / wall_seconds,
        "plain_seconds_per_token": sum(plain) / len(batches),
    }


def race_batches(contestants: Contestants, prompts: list[list[int]], sampling: Sampling) -> dict[str, Any]:
    """Two batches of eight over the same prompts one by one, by the same decoder."""
    ours = contestants.ours("specdistill", BATCH_DRAFT_TOKENS, sampling)

    def one_by_one(batch, seed):
        return Decoded(sum(ours([ids], seed + row).tokens for row, ids in enumerate(batch)), 0.0)

    calls = {"plain": one_by_one, "specdistill": ours, "plain-8": contestants.plain(sampling)}
    return race(calls, [prompts[:8], prompts[8:]])


def single_calls(contestants: Contestants, length: int, sampling: Sampling) -> dict[str, Decode]:
    """All contestants at one draft length."""
    return {
        "plain": contestants.plain(sampling),
        **{name: contestants.ours(name, length, sampling) for name in OURS},
        "transformers": contestants.transformers(length, sampling),
        "flashspec": contestants.flashspec(length, sampling),
    }


def draft_lengths(temperature: str, quick: bool) -> list[int]:
    """Lengths to measure. `--quick` measures fewer, each as in the full run, so that results are comparable."""
    if not quick:
        return list(range(1, 9))
    return [1, 4] if temperature == "0" else [4]


def started_result(path: Path, pair: str, resume: bool) -> dict[str, Any]:
    """The result so far: an empty one, or the one in `path` to go on with."""
    header = {"pair": pair, "prompts": PROMPTS, "max_new_tokens": NUM_NEW, "torch": torch.__version__}
    header |= {"cpu": torch.backends.cpu.get_cpu_capability()}
    if not (resume and path.exists()):
        return header | {"batch_1": {}, "batch_8": {}}
    known = json.loads(path.read_text())
    if any(known[key] != value for key, value in header.items()):
        sys.exit(f"{path} is of another pair, torch or CPU; leave out --resume")
    return known


def measure(options: argparse.Namespace, path: Path) -> None:
    """Fills the result file, measurement by measurement."""
    result = started_result(path, options.what or Path(options.draft).name, options.resume)
    contestants = Contestants(options.target, options.draft, NUM_NEW)
    chosen = spread_over_categories(load_prompts(options.prompts), 16)
    prompts = encode_all(chosen, contestants.target.tokenizer, 4096)
    for temperature in TEMPERATURES:
        sampling = Sampling(temperature=float(temperature))
        lengths = draft_lengths(temperature, options.quick)
        done = result["batch_1"].setdefault(temperature, {})
        for length in (length for length in lengths if str(length) not in done):
            calls = single_calls(contestants, length, sampling)
            if length == lengths[0]:
                calls["transformers-plain"] = contestants.transformers(None, sampling)
            done[str(length)] = race(calls, [[ids] for ids in prompts[:PROMPTS]])
            print(temperature, length, json.dumps(done[str(length)]), flush=True)
            write_result_to(path, result)
        if temperature not in result["batch_8"] and not (options.quick and temperature == "1"):
            raced = race_batches(contestants, prompts, sampling)
            result["batch_8"][temperature] = {"over_one_by_one": raced["over_plain"]}
            print(temperature, "batch 8", json.dumps(raced), flush=True)
            write_result_to(path, result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--prompts", default="builtin:heldout")
    parser.add_argument("--what", default="", help="the pair in words, for the table")
    parser.add_argument("--quick", action="store_true", help="fewer draft lengths")
    parser.add_argument("--resume", action="store_true", help="measure only entries that the result file lacks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measure(options, RESULTS / (quick_result("decoder_peers.json") if options.quick else "decoder_peers.json"))


if __name__ == "__main__":
    main()
