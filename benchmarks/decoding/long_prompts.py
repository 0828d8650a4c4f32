"""Memory and time of long prompts: our plain decoding against transformers' `generate`, two layers, one CPU thread.

    python benchmarks/decoding/long_prompts.py           (about 4 minutes; nothing else may run meanwhile)

Each measurement is the largest memory (RSS) of a process of its own, which imports both libraries, makes the same
random model and writes 8 tokens. `idle_mib` is its memory before that. Writes benchmarks/results/long_prompts.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.support.paths import ROOT
from benchmarks.support.results import write_result

CONTESTANTS = ("transformers", "specdistill")
SIZES = ((2_000, 1), (8_000, 1), (20_000, 1), (12_000, 8))
"""Tokens of each prompt, and prompts."""
NEW_TOKENS, GOAL = 8, 1.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    one = parser.parse_args().one
    if one:
        print(json.dumps(measure(one[0], int(one[1]), int(one[2]))))
        return
    rows = []
    for tokens, prompts in SIZES:
        ours, theirs = (in_new_process(name, tokens, prompts) for name in reversed(CONTESTANTS))
        assert ours.pop("answers") == theirs.pop("answers"), "both must write the same tokens"
        ratio = ours["peak_mib"] / theirs["peak_mib"]
        rows.append({"tokens": tokens, "prompts": prompts, "transformers": theirs, "specdistill": ours, "ratio": ratio})
        print(rows[-1], flush=True)
    write_result("long_prompts.json", {"new_tokens": NEW_TOKENS, "goal": GOAL, "rows": rows})


def in_new_process(contestant: str, tokens: int, prompts: int) -> dict[str, Any]:
    """Measures in a process that has done nothing else."""
    command = [sys.executable, __file__, "--one", contestant, str(tokens), str(prompts)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(contestant: str, tokens: int, prompts: int) -> dict[str, Any]:
    """Writes greedy answers here."""
    import torch
    from transformers import LlamaConfig

    from benchmarks.support.random_models import random_model
    from specdistill.decoding import Sampling, generate_plain

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32_768,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    ours = random_model(config, "toy")
    model: Any = ours.model
    ids = torch.randint(1, 256, (prompts, tokens))
    idle, start = peak_mib(), time.perf_counter()
    if contestant == "transformers":
        mask = torch.ones_like(ids)
        written = model.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)
        answers = written[:, tokens:].tolist()
    else:
        greedy = Sampling(temperature=0.0)
        seeds = [0] * prompts
        written = generate_plain(ours, ids.tolist(), sampling=greedy, max_new_tokens=NEW_TOKENS, seeds=seeds)
        answers = [generation.token_ids for generation in written]
    seconds = time.perf_counter() - start
    return {"idle_mib": idle, "peak_mib": peak_mib(), "seconds": seconds, "answers": answers}


def peak_mib() -> float:
    """Largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
