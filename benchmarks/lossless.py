"""Is greedy speculative output the target's own, token for token? SmolLM2, 64 real prompts, draft lengths 1 to 8.

    python benchmarks/lossless.py --draft demo/.../draft --prompts 64

The target's own output is decoded one prompt at a time; the speculative one in ragged batches of eight, float32, one
thread. Where two outputs part, it reports how close the two best logits were there: a gap of a few roundings is a
numerical tie, anything larger is a bug. Writes benchmarks/results/lossless.json, which is also the last line of stdout.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from smollm2 import RESULTS, target_file

from specdistill.data.prompts import encode_all, load_prompts, spread_over_categories
from specdistill.decoding import Sampling, SpeculativeDecoder, generate_plain
from specdistill.evaluation.latency import first_difference
from specdistill.evaluation.to_json import to_json
from specdistill.models import load_pair

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pair = load_pair(str(target_file()), options.draft)
    prompts = spread_over_categories(load_prompts("builtin:heldout"), options.prompts)
    encoded = encode_all(prompts, pair.target.tokenizer, 4096)
    sampling, settings = Sampling(temperature=0.0), {"max_new_tokens": options.max_new_tokens}
    differences, tokens = [], 0
    accepted, rounds = dict.fromkeys(range(1, 9), 0), dict.fromkeys(range(1, 9), 0)
    for start in range(0, len(prompts), BATCH):
        chunk = range(start, min(start + BATCH, len(prompts)))
        plain = [
            generate_plain(pair.target, [encoded[index]], sampling=sampling, seeds=[0], **settings)[0]
            for index in chunk
        ]
        tokens += sum(len(each.token_ids) for each in plain)
        for gamma in accepted:
            decoder = SpeculativeDecoder(pair.target, pair.draft, num_draft_tokens=gamma, sampling=sampling)
            fast = decoder.generate([encoded[index] for index in chunk], seeds=[0] * len(chunk), **settings)
            for index, own, other in zip(chunk, plain, fast, strict=True):
                accepted[gamma] += sum(entry.accepted for entry in other.rounds)
                rounds[gamma] += len(other.rounds)
                found = first_difference(pair.target, prompts[index], encoded[index], own, other)
                if found:
                    differences.append(to_json(found) | {"num_draft_tokens": gamma})
        print(f"{chunk.stop}/{len(prompts)} prompts: {len(differences)} differences so far", flush=True)
    result = {
        "prompts": len(prompts),
        "draft_lengths": list(accepted),
        "tokens_per_length": tokens,
        "accepted_draft_tokens": accepted,
        "target_calls": rounds,
        "identical": not differences,
        "differences": differences,
        "draft": Path(options.draft).name,
        "torch": torch.__version__,
    }
    (RESULTS / "lossless.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
