"""Is greedy speculative output the target's own, token for token? SmolLM2, 64 real prompts, draft lengths 1 to 8.

    python benchmarks/lossless.py --draft demo/.../draft --prompts 64

Decodes one prompt at a time, float32, one thread. Where two outputs part, it prints how close the target's two best
logits were there: a gap of a few roundings is a numerical tie, anything larger is a bug. Writes
benchmarks/results/lossless.json; the last line of stdout is that JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from smollm2 import RESULTS, target_file

from specdistill.data.prompts import encode_all, load_prompts
from specdistill.decoding import Sampling, SpeculativeDecoder, generate_plain
from specdistill.evaluation.bench import spread_over_categories
from specdistill.evaluation.latency import first_difference
from specdistill.models import load_pair


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pair = load_pair(str(target_file()), options.draft)
    prompts = spread_over_categories(load_prompts("builtin:heldout"), options.prompts)
    encoded = encode_all(prompts, pair.target.tokenizer, 4096)
    sampling = Sampling(temperature=0.0)
    differences, tokens = [], 0
    accepted = dict.fromkeys(range(1, 9), 0)
    for number, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True), start=1):
        settings = {"max_new_tokens": options.max_new_tokens, "seeds": [0]}
        (plain,) = generate_plain(pair.target, [ids], sampling=sampling, **settings)
        tokens += len(plain.token_ids)
        for gamma in accepted:
            decoder = SpeculativeDecoder(pair.target, pair.draft, num_draft_tokens=gamma, sampling=sampling)
            (fast,) = decoder.generate([ids], **settings)
            accepted[gamma] += sum(entry.accepted for entry in fast.rounds)
            found = first_difference(pair.target, prompt, ids, plain, fast)
            if found:
                differences.append(found | {"num_draft_tokens": gamma})
        print(f"{number}/{len(prompts)} {prompt.id}: {len(differences)} differences so far", flush=True)
    result = {
        "prompts": len(prompts),
        "draft_lengths": list(accepted),
        "tokens_per_length": tokens,
        "accepted_draft_tokens": accepted,
        "identical": not differences,
        "differences": differences,
        "draft": Path(options.draft).name,
        "torch": torch.__version__,
    }
    (RESULTS / "lossless.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
