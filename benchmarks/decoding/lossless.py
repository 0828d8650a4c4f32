"""Is greedy speculative output the target's own, token for token? 64 real prompts, draft lengths 1 to 8.

    python benchmarks/decoding/lossless.py --draft demo/.../draft --prompts 64
    python benchmarks/decoding/lossless.py --draft DIR --target DIR --prompts-from FILE --longest 12 --name parallel

The target's own output is decoded one prompt at a time, the speculative one in ragged batches of eight, float32, one
thread. Where two outputs differ, it reports how close the two best logits were there: a gap of a few roundings is a
numerical tie, anything larger is a bug. Writes benchmarks/results/lossless.json, or lossless_NAME.json, which is also
the last line of stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.support.paths import target_file
from benchmarks.support.results import write_result
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
    parser.add_argument("--target", help="SmolLM2 where it is left out")
    parser.add_argument("--prompts-from", default="builtin:heldout")
    parser.add_argument("--longest", type=int, default=8, help="most draft tokens")
    parser.add_argument("--name", help="another result file: lossless_NAME.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pair = load_pair(options.target or str(target_file()), options.draft)
    prompts = spread_over_categories(load_prompts(options.prompts_from), options.prompts)
    encoded = encode_all(prompts, pair.target.tokenizer, 4096)
    sampling, settings = Sampling(temperature=0.0), {"max_new_tokens": options.max_new_tokens}
    differences, tokens = [], 0
    lengths = range(1, options.longest + 1)
    accepted, rounds = dict.fromkeys(lengths, 0), dict.fromkeys(lengths, 0)
    for start in range(0, len(prompts), BATCH):
        chunk = range(start, min(start + BATCH, len(prompts)))
        plain = [
            generate_plain(pair.target, [encoded[index]], sampling=sampling, seeds=[0], **settings)[0]
            for index in chunk
        ]
        tokens += sum(len(answer.token_ids) for answer in plain)
        for length in lengths:
            decoder = SpeculativeDecoder(pair.target, pair.draft, num_draft_tokens=length, sampling=sampling)
            drafted = decoder.generate([encoded[index] for index in chunk], seeds=[0] * len(chunk), **settings)
            for index, own, other in zip(chunk, plain, drafted, strict=True):
                accepted[length] += sum(entry.accepted for entry in other.rounds)
                rounds[length] += len(other.rounds)
                difference = first_difference(pair.target, prompts[index], encoded[index], own, other)
                if difference:
                    differences.append(to_json(difference) | {"num_draft_tokens": length})
        print(f"{chunk.stop}/{len(prompts)} prompts: {len(differences)} differences so far", flush=True)
    result = {
        "prompts": len(prompts),
        "draft_lengths": list(lengths),
        "tokens_per_length": tokens,
        "accepted_draft_tokens": accepted,
        "target_calls": rounds,
        "identical": not differences,
        "differences": differences,
        "draft": Path(options.draft).name,
        "torch": torch.__version__,
    }
    write_result(f"lossless_{options.name}.json" if options.name else "lossless.json", result, indent=2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
