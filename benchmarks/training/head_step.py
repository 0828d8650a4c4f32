"""A training step of an EAGLE-3 head against one of an independent draft: tokens of text per second, and memory.

    python benchmarks/training/head_step.py        (about 10 minutes; nothing else may run meanwhile)

Target and draft have SmolLM2-135M's shapes (30 layers, and 4 for the independent draft) and random weights, so nothing
is downloaded; float32, one thread, 4 answers of 128 tokens behind prompts of 64, forward KL. The head proposes 8192
ids. `fresh text` counts the target's pass, as text that is written while the draft trains needs it; `known text` has
its hidden states from before, as answers that come again do. Each contestant has its own process and waits for its
turn; who begins changes every round. Memory is the resident set; `state_bytes_per_token` what is kept of known text.

Writes benchmarks/results/head_step.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.support.interleaved import Interleaved, all_turns
from benchmarks.support.random_models import Shape, random_model, random_prompts
from benchmarks.support.results import write_result
from specdistill import TrainConfig
from specdistill.data import Example
from specdistill.distill.processes.ranks import ALONE
from specdistill.distill.target.head_states import states_for
from specdistill.distill.training.step import StepRunner
from specdistill.evaluation.statistics import ratio
from specdistill.models import LanguageModel, ModelPair
from specdistill.models.eagle3 import head_from_target
from specdistill.models.head_draft import as_draft

BATCH, PROMPT, ANSWER, IDS = 4, 64, 128, 8192
TARGET = Shape("target", 576, 30, 9, 3, 64, 1536, 49152, tied=True)
DRAFT = dataclasses.replace(TARGET, name="draft", layers=4)
ORDINARY = "independent"
UNROLLED = {"head, 1 step": 1, "head, 3 steps": 3, "head, 5 steps": 5}
"""Contestant -> --unroll."""


def examples_of(step: int) -> list[Example]:
    """The step's texts, the same for all contestants; other names make other texts of them."""
    texts = random_prompts(BATCH, PROMPT + ANSWER, TARGET.vocab - 1)
    return [
        Example(f"{step} {row}", tuple(text[:PROMPT]), tuple(text[PROMPT:]), (2,) * ANSWER)
        for row, text in enumerate(texts)
    ]


def make_pair(name: str) -> ModelPair:
    """Target and the contestant's draft."""
    target = random_model(TARGET.config())
    if name == ORDINARY:
        draft: LanguageModel = random_model(DRAFT.config())
    else:
        draft = as_draft(head_from_target(target, range(IDS)), target, name)
    target.model.requires_grad_(False)
    draft.model.requires_grad_(True)
    return ModelPair(target, draft)


def run_worker(name: str, known: bool) -> None:
    """Takes turns until the comparing script ends the process."""
    pair, turns, step = make_pair(name), Interleaved(), 0
    unroll = {} if name == ORDINARY else {"unroll": UNROLLED[name]}
    config = TrainConfig.flat(target="t", draft="d", output="o", learning_rate=1e-4, batch_size=BATCH, **unroll)
    objective, _ = config.for_draft(name != ORDINARY)
    states = states_for(pair, examples_of(0) if known else (), None, lockstep=False)
    runner = StepRunner(pair, states, objective, config.optimiser, ALONE)
    while True:
        step += 1
        pair.draft.model.train()
        turns.begin()
        turns.tokens = runner.run(examples_of(0 if known else step)).tokens
        turns.end()


def compare(rounds: int, known: bool) -> dict[str, Any]:
    """Speed and memory of each contestant, and its speed over an independent draft's step."""
    turns = all_turns(__file__, [ORDINARY, *UNROLLED], rounds, *["--known"] * known)
    result = {}
    ordinary = [turn.tokens / turn.seconds for turn in turns[ORDINARY]]
    for name, own in turns.items():
        speeds = [turn.tokens / turn.seconds for turn in own]
        states = TARGET.hidden * (1 if name == ORDINARY else 4) * 4
        result[name] = {
            "tokens_per_second": sum(speeds) / len(speeds),
            "over_independent": ratio(speeds, ordinary).to_json(),
            "peak_above_held_mib": max(turn.above_mib for turn in own),
            "state_bytes_per_token": states,
        }
        print(f"    {'known' if known else 'fresh'} text, {name}: {result[name]}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--worker", choices=[ORDINARY, *UNROLLED], help=argparse.SUPPRESS)
    parser.add_argument("--known", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.worker:
        return run_worker(options.worker, options.known)
    result: dict[str, Any] = {"draft_ids": IDS, "torch": torch.__version__}
    result |= {f"{kind} text": compare(options.rounds, kind == "known") for kind in ("fresh", "known")}
    write_result("head_step.json", result)


if __name__ == "__main__":
    main()
