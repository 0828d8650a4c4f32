"""How fast is the decoder? SmolLM2 on one CPU thread; every number is a ratio from one interleaved run.

    python benchmarks/decoder_speed.py --draft DIR              (about 8 minutes; nothing else may run meanwhile)

1. verify_cost: a target pass over n tokens in plain steps, float32 as torch multiplies it, and packed (`--pack`).
2. `auto` against the plain target, with the draft given and with a useless one (the rows of its head reversed).

Prompts take turns, and so do the contestants within a prompt: noise of this machine hits all alike. Intervals are
bootstrapped over prompts. Writes benchmarks/results/decoder_speed.json, which is also the last line of stdout.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from smollm2 import RESULTS, target_file

from specdistill.data.prompts import encode_all, load_prompts, spread_over_categories
from specdistill.decoding import AutoLength, Sampling, SpeculativeDecoder, generate_plain
from specdistill.decoding.costs import measure_costs
from specdistill.evaluation.statistics import ratio
from specdistill.models import load_pair
from specdistill.models.packed import pack
from specdistill.models.pair import ModelPair

GREEDY = Sampling(temperature=0.0)
MAX_DRAFT = 4


def seconds_of(call: Callable[[], int]) -> tuple[float, int]:
    """Wall seconds, and tokens that the call says it wrote."""
    start = time.perf_counter()
    tokens = call()
    return time.perf_counter() - start, tokens


def compare(items: Sequence, ours: Callable, theirs: Callable) -> dict:
    """Tokens per second of ours over theirs, contestants in turn (who begins alternates), with a 95 % interval."""
    ours(items[0])
    theirs(items[0])
    numerators, denominators = [], []
    for index, item in enumerate(items):
        order = (ours, theirs) if index % 2 == 0 else (theirs, ours)
        took = {call: seconds_of(lambda call=call, item=item: call(item)) for call in order}
        # Seconds per token of theirs over seconds per token of ours.
        numerators.append(took[theirs][0] / took[theirs][1])
        denominators.append(took[ours][0] / took[ours][1])
    got = ratio(numerators, denominators)
    print(f"    {got.mean:.3f} [{got.low:.3f}, {got.high:.3f}]", flush=True)
    return got.to_json()


def tokens_of(results) -> int:
    return sum(len(result.token_ids) for result in results)


def verify_costs(pair: ModelPair, prompts: list[list[int]]) -> dict:
    costs = measure_costs(
        pair.target, pair.draft, batch_size=1, max_draft_tokens=8, context=sorted(map(len, prompts))[len(prompts) // 2],
        repeats=15,
    )  # fmt: skip
    found = {
        "target_step_seconds": costs.target_step_seconds,
        "cost_ratio": costs.cost_ratio,
        "verify_cost": dict(costs.verify_cost),
    }
    print("   ", json.dumps(found), flush=True)
    return found


def useless(pair: ModelPair) -> ModelPair:
    """The same draft with the rows of its head in reverse: as fast, and never right."""
    draft = copy.copy(pair.draft)
    draft._head = pair.draft.inference_head().detach().flip(0).contiguous()
    if draft.kept_ids is None:
        raise SystemExit("name a draft with a trimmed head, such as the demo's")
    return ModelPair(pair.target, draft)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    options = parser.parse_args()
    torch.set_num_threads(1)
    new = options.max_new_tokens
    pair = load_pair(str(target_file()), options.draft)
    prompts = encode_all(
        spread_over_categories(load_prompts("builtin:heldout"), options.prompts), pair.target.tokenizer, 4096
    )
    result: dict = {
        "draft": Path(options.draft).name,
        "prompts": len(prompts),
        "max_new_tokens": new,
        "torch": torch.__version__,
    }

    print("verify cost, float32", flush=True)
    result["float32"] = verify_costs(pair, prompts)

    def plain(ids: list[int]) -> int:
        return tokens_of(generate_plain(pair.target, [ids], sampling=GREEDY, max_new_tokens=new, seeds=[0]))

    for name, other in (("draft", pair), ("useless_draft", useless(pair))):
        costs = measure_costs(other.target, other.draft, batch_size=1, max_draft_tokens=MAX_DRAFT, context=64)
        automatic = SpeculativeDecoder(
            other.target, other.draft, num_draft_tokens=AutoLength(costs, MAX_DRAFT), sampling=GREEDY
        )
        print(f"auto over the plain target, {name}", flush=True)
        result[f"auto_over_plain_{name}"] = compare(
            prompts,
            lambda ids, automatic=automatic: tokens_of(automatic.generate([ids], max_new_tokens=new, seeds=[0])),
            plain,
        )

    for kind in ("float16", "int8"):
        packed = load_pair(str(target_file()), options.draft)
        seconds = pack(packed.target, kind) + pack(packed.draft, kind)
        print(f"verify cost, packed {kind} in {seconds:.1f} s", flush=True)
        result[kind] = {"packing_seconds": seconds, **verify_costs(packed, prompts)}
        step = result[kind]["target_step_seconds"] / result["float32"]["target_step_seconds"]
        fast = SpeculativeDecoder(packed.target, packed.draft, num_draft_tokens=MAX_DRAFT, sampling=GREEDY)
        same = total = 0
        for ids in prompts:
            alone = generate_plain(packed.target, [ids], sampling=GREEDY, max_new_tokens=new, seeds=[0])[0]
            drafted = fast.generate([ids], max_new_tokens=new, seeds=[0])[0]
            same, total = same + (alone.token_ids == drafted.token_ids), total + 1
        result[kind] |= {"step_over_float32": step, "greedy_identical_prompts": same, "of_prompts": total}
        print(f"    a step takes {step:.2f} of float32's; greedy output identical for {same} of {total}", flush=True)

    (RESULTS / "decoder_speed.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
