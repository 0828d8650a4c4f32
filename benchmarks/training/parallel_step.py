"""A training step of a parallel draft (PARD) against an ordinary one: tokens of text per second, and memory.

    python benchmarks/training/parallel_step.py        (about 7 minutes; nothing else may run meanwhile)

Target and draft have SmolLM2-135M's shapes (30 layers, and 4 for the draft) and random weights, so nothing is
downloaded; float32, one thread, 4 answers of 128 tokens behind prompts of 64, forward KL. Tokens are those of the
answers, whatever number of guesses a step trains on. `fresh text` counts the target's pass, as text that is written
while the draft trains needs it; `known text` has its hidden states from before, as answers that come again do. Each
contestant has its own process and waits for its turn; who begins changes every round. Memory is the resident set.

Writes benchmarks/results/parallel_step.json.
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
from specdistill.data.mask_tokens import drop_masks, every_mask
from specdistill.distill.processes.ranks import ALONE
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.training.step import StepRunner, guesses_by_depth
from specdistill.evaluation.statistics import ratio
from specdistill.files.parallel_drafting import ParallelDrafting
from specdistill.models import LanguageModel, ModelPair
from specdistill.models.mask_token import install_mask_token

TOKENS, BATCH, PROMPT, ANSWER = 8, 4, 64, 128
TARGET = Shape("target", 576, 30, 9, 3, 64, 1536, 49152, tied=True)
DRAFT = dataclasses.replace(TARGET, name="draft", layers=4)
ORDINARY, DEFAULT = "ordinary", "parallel"
KEPT: dict[str, tuple[float, float]] = {DEFAULT: (0.5, 0.1), "as published": (0.7, 0.2), "nothing dropped": (1.0, 1.0)}
"""Contestant -> --parallel-keep and --parallel-keep-least."""


def masks_of(name: str, step: int, row: int) -> tuple[int, ...] | None:
    """Masks behind each anchor of an answer; None for an ordinary draft."""
    return None if name == ORDINARY else drop_masks(every_mask(ANSWER, TOKENS), *KEPT[name], f"{step} {row}")


def examples_of(name: str, step: int) -> list[Example]:
    """The step's texts, the same for all contestants."""
    texts = random_prompts(BATCH, PROMPT + ANSWER, TARGET.vocab - 1)
    return [
        Example(str(row), tuple(text[:PROMPT]), tuple(text[PROMPT:]), (2,) * ANSWER, masks=masks_of(name, step, row))
        for row, text in enumerate(texts)
    ]


def make_runner(name: str, target: LanguageModel, draft: LanguageModel) -> StepRunner:
    """A step as `train-draft` takes it."""
    draft.model.requires_grad_(True)
    parallel = {} if name == ORDINARY else {"parallel": TOKENS}
    config = TrainConfig.flat(target="t", draft="d", output="o", learning_rate=1e-4, batch_size=BATCH, **parallel)
    if parallel:
        install_mask_token(draft, ParallelDrafting(TARGET.vocab - 1, TOKENS), TARGET.vocab)
    return StepRunner(ModelPair(target, draft), TargetStates(target), config.objective, config.optimiser, ALONE)


def run_worker(name: str, known: bool) -> None:
    """Takes turns until the comparing script ends the process."""
    target, draft = (random_model(shape.config()) for shape in (TARGET, DRAFT))
    runner, turns, step = make_runner(name, target, draft), Interleaved(), 0
    states = TargetStates(target).hidden_states(examples_of(name, 0))
    while True:
        step += 1
        examples = examples_of(name, step)
        if known:
            examples = [
                dataclasses.replace(one, target_hidden=rows) for one, rows in zip(examples, states, strict=True)
            ]
        draft.model.train()
        turns.begin()
        turns.tokens = runner.run(examples).tokens
        turns.end()


def compare(rounds: int, known: bool) -> dict[str, Any]:
    """Speed and memory of each contestant, and its speed over an ordinary step's."""
    turns = all_turns(__file__, [ORDINARY, *KEPT], rounds, *["--known"] * known)
    result = {}
    for name, own in turns.items():
        speeds = [turn.tokens / turn.seconds for turn in own]
        ordinary = [turn.tokens / turn.seconds for turn in turns[ORDINARY]]
        examples = examples_of(name, 1)
        guesses = sum(guesses_by_depth(examples, TOKENS)) if name != ORDINARY else BATCH * ANSWER
        result[name] = {
            "guesses_per_token": guesses / (BATCH * ANSWER),
            "tokens_per_second": sum(speeds) / len(speeds),
            "over_ordinary": ratio(speeds, ordinary).to_json(),
            "peak_above_held_mib": max(turn.above_mib for turn in own),
        }
        print(f"    {'known' if known else 'fresh'} text, {name}: {result[name]}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--worker", choices=[ORDINARY, *KEPT], help=argparse.SUPPRESS)
    parser.add_argument("--known", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.worker:
        return run_worker(options.worker, options.known)
    result = {"num_tokens": TOKENS, "torch": torch.__version__}
    result |= {f"{kind} text": compare(options.rounds, kind == "known") for kind in ("fresh", "known")}
    write_result("parallel_step.json", result)


if __name__ == "__main__":
    main()
