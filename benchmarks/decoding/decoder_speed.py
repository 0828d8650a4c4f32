"""How fast is the decoder? SmolLM2 on one CPU thread; every number is a ratio from one interleaved run.

    python benchmarks/decoding/decoder_speed.py --draft DIR        (about 8 minutes; nothing else may run meanwhile)

1. verify_cost: a target pass over n tokens in plain steps, float32 as torch multiplies it, and packed (`--pack`).
2. `auto` against the plain target, with the draft given and with one that is never right (its head's rows reversed).

Prompts take turns, and so do the contestants within a prompt: noise of this machine hits all alike. Intervals are
bootstrapped over prompts. Writes benchmarks/results/decoder_speed.json, which is also the last line of stdout.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.support.paths import target_file
from benchmarks.support.results import write_result
from benchmarks.support.special_drafts import never_right
from specdistill.data.prompts import encode_all, load_prompts, spread_over_categories
from specdistill.decoding import AutoLength, Generation, Sampling, SpeculativeDecoder, generate_plain
from specdistill.decoding.costs import measure_costs
from specdistill.evaluation.statistics import ratio
from specdistill.models import ModelPair, load_pair
from specdistill.models.packed import pack

GREEDY = Sampling(temperature=0.0)
MAX_DRAFT = 4
DecodePrompt = Callable[[list[int]], Sequence[Generation]]


def seconds_per_token(decode: DecodePrompt, prompt: list[int]) -> float:
    """Wall seconds of one answer, over its tokens."""
    start = time.perf_counter()
    answers = decode(prompt)
    seconds = time.perf_counter() - start
    return seconds / sum(len(answer.token_ids) for answer in answers)


def compare(prompts: list[list[int]], ours: DecodePrompt, theirs: DecodePrompt) -> dict[str, Any]:
    """Tokens per second of ours over theirs, contestants in turn (who begins alternates), with a 95 % interval."""
    ours(prompts[0])
    theirs(prompts[0])
    our_times, their_times = [], []
    for number, prompt in enumerate(prompts):
        contestants = [(ours, our_times), (theirs, their_times)]
        for decode, times in contestants if number % 2 == 0 else reversed(contestants):
            times.append(seconds_per_token(decode, prompt))
    estimate = ratio(their_times, our_times)
    print(f"    {estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]", flush=True)
    return estimate.to_json()


def measure_verify_cost(pair: ModelPair, prompts: list[list[int]]) -> dict[str, Any]:
    """Costs of single passes at the prompts' median length."""
    context = sorted(map(len, prompts))[len(prompts) // 2]
    costs = measure_costs(pair.target, pair.draft, batch_size=1, max_draft_tokens=8, context=context, repeats=15)
    result = {
        "target_step_seconds": costs.target_step_seconds,
        "cost_ratio": costs.cost_ratio,
        "verify_cost": dict(costs.verify_cost),
    }
    print("   ", json.dumps(result), flush=True)
    return result


def auto_over_plain(pair: ModelPair, prompts: list[list[int]], max_new_tokens: int) -> dict[str, Any]:
    """The decoder that chooses its draft length, against the plain target."""
    costs = measure_costs(pair.target, pair.draft, batch_size=1, max_draft_tokens=MAX_DRAFT, context=64)
    automatic = SpeculativeDecoder(
        pair.target, pair.draft, num_draft_tokens=AutoLength(costs, MAX_DRAFT), sampling=GREEDY
    )
    length = {"max_new_tokens": max_new_tokens, "seeds": [0]}
    return compare(
        prompts,
        lambda ids: automatic.generate([ids], **length),
        lambda ids: generate_plain(pair.target, [ids], sampling=GREEDY, **length),
    )


def packed(kind: str, draft: str, prompts: list[list[int]], max_new_tokens: int, float32_step: float) -> dict[str, Any]:
    """Costs with packed weights, and for how many prompts greedy output stays that of the packed target alone."""
    pair = load_pair(str(target_file()), draft)
    seconds = pack(pair.target, kind) + pack(pair.draft, kind)
    print(f"verify cost, packed {kind} in {seconds:.1f} s", flush=True)
    result = {"packing_seconds": seconds, **measure_verify_cost(pair, prompts)}
    step = result["target_step_seconds"] / float32_step
    decoder = SpeculativeDecoder(pair.target, pair.draft, num_draft_tokens=MAX_DRAFT, sampling=GREEDY)
    length = {"max_new_tokens": max_new_tokens, "seeds": [0]}
    identical = 0
    for ids in prompts:
        alone = generate_plain(pair.target, [ids], sampling=GREEDY, **length)[0]
        drafted = decoder.generate([ids], **length)[0]
        identical += alone.token_ids == drafted.token_ids
    print(
        f"    a step takes {step:.2f} of float32's; greedy output identical for {identical} of {len(prompts)}",
        flush=True,
    )
    return result | {"step_over_float32": step, "greedy_identical_prompts": identical, "of_prompts": len(prompts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pair = load_pair(str(target_file()), options.draft)
    chosen = spread_over_categories(load_prompts("builtin:heldout"), options.prompts)
    prompts = encode_all(chosen, pair.target.tokenizer, 4096)
    result: dict[str, Any] = {
        "draft": Path(options.draft).name,
        "prompts": len(prompts),
        "max_new_tokens": options.max_new_tokens,
        "torch": torch.__version__,
    }
    print("verify cost, float32", flush=True)
    result["float32"] = measure_verify_cost(pair, prompts)
    pairs = {"draft": pair, "useless_draft": dataclasses.replace(pair, draft=never_right(pair.draft))}
    for name, drafted in pairs.items():
        print(f"auto over the plain target, {name}", flush=True)
        result[f"auto_over_plain_{name}"] = auto_over_plain(drafted, prompts, options.max_new_tokens)
    step = result["float32"]["target_step_seconds"]
    for kind in ("float16", "int8"):
        result[kind] = packed(kind, options.draft, prompts, options.max_new_tokens, step)
    write_result("decoder_speed.json", result, indent=2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
