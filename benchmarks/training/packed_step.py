"""A training step on texts of 20 to 200 tokens: padded, packed, and in micro-batches of like length.

    python benchmarks/training/packed_step.py        (about 10 minutes; nothing else may run meanwhile)

Target and draft have SmolLM2-135M's shapes (30 layers, and 4 for the draft) and random weights, so nothing is
downloaded; float32, one thread, 8 texts a step, forward KL. A text's length is drawn evenly from 20 to 200 tokens, and
a quarter to three quarters of it are the prompt. `fresh text` counts the target's pass, as text that is written while
the draft trains needs it; `known text` has its hidden states from before, as answers that come again do.

`padded` is --no-packing. `packed` is what --packing does. `by length` is its rival, which needs no packing: the step's
texts are sorted by length and padded in micro-batches of 4 or 2, whose gradients add up. Each contestant has its own
process and waits for its turn; who begins changes every round, and all train on the same texts. Tokens are those of the
answers. Memory is the resident set.

Writes benchmarks/results/packed_step.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.support.interleaved import Interleaved, all_turns
from benchmarks.support.random_models import Shape, random_model
from benchmarks.support.results import write_result
from specdistill import TrainConfig
from specdistill.data import Example
from specdistill.decoding.packed_pass import plan_rows, why_unpacked
from specdistill.distill.processes.ranks import ALONE
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.training.step import StepRunner
from specdistill.evaluation.statistics import ratio
from specdistill.models import ModelPair

BATCH, SHORTEST, LONGEST = 8, 20, 200
TARGET = Shape("target", 576, 30, 9, 3, 64, 1536, 49152, tied=True)
DRAFT = dataclasses.replace(TARGET, name="draft", layers=4)
PADDED, PACKED = "padded", "packed"
BY_LENGTH = {"by length, micro-batches of 4": 4, "by length, micro-batches of 2": 2}


def length_of(one: Example) -> int:
    """Tokens of a text."""
    return len(one.prompt_ids) + len(one.answer_ids)


def examples_of(step: int) -> list[Example]:
    """The step's texts, the same for all contestants."""
    drawn, examples = random.Random(step), []
    for number in range(BATCH):
        length = drawn.randint(SHORTEST, LONGEST)
        prompt = round(length * drawn.uniform(0.25, 0.75))
        ids = [drawn.randrange(1, TARGET.vocab) for _ in range(length)]
        examples.append(Example(str(number), tuple(ids[:prompt]), tuple(ids[prompt:]), (2,) * (length - prompt)))
    return examples


def run_worker(name: str, known: bool) -> None:
    """Takes turns until the comparing script ends the process."""
    target, draft = (random_model(shape.config()) for shape in (TARGET, DRAFT))
    draft.model.requires_grad_(True)
    for model in (target, draft):
        model.packs = name == PACKED and why_unpacked(model) is None
    config = TrainConfig.flat(
        target="t", draft="d", output="o", learning_rate=1e-4, batch_size=BATCH, micro_batch_size=BY_LENGTH.get(name, 0)
    )
    states = TargetStates(target)
    runner = StepRunner(ModelPair(target, draft), states, config.objective, config.optimiser, ALONE)
    turns, step = Interleaved(), 0
    while True:
        step += 1
        examples = examples_of(step)
        if name in BY_LENGTH:
            examples.sort(key=length_of)
        if known:
            found = states.hidden_states(examples)
            examples = [dataclasses.replace(one, target_hidden=rows) for one, rows in zip(examples, found, strict=True)]
        draft.model.train()
        turns.begin()
        turns.tokens = runner.run(examples).tokens
        turns.end()


def padding_share(rounds: int, packed: bool) -> float:
    """Share of the tokens of all passes that belong to no text."""
    real = there = 0
    for step in range(2, rounds + 2):
        lengths = [length_of(one) for one in examples_of(step)]
        rows = plan_rows(lengths, TARGET.hidden) if packed else [[text] for text in range(BATCH)]
        real += sum(lengths)
        there += len(rows) * max(sum(lengths[text] for text in row) for row in rows)
    return 1 - real / there


def compare(rounds: int, known: bool) -> dict[str, Any]:
    """Speed and memory of each contestant, and its speed over the padded step's."""
    turns = all_turns(__file__, [PADDED, PACKED, *BY_LENGTH], rounds, *["--known"] * known)
    result = {}
    padded = [turn.tokens / turn.seconds for turn in turns[PADDED]]
    for name, own in turns.items():
        speeds = [turn.tokens / turn.seconds for turn in own]
        result[name] = {
            "tokens_per_second": sum(turn.tokens for turn in own) / sum(turn.seconds for turn in own),
            "over_padded": ratio(speeds, padded).to_json(),
            "peak_above_held_mib": max(turn.above_mib for turn in own),
        }
        print(f"    {'known' if known else 'fresh'} text, {name}: {result[name]}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--worker", choices=[PADDED, PACKED, *BY_LENGTH], help=argparse.SUPPRESS)
    parser.add_argument("--known", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.worker:
        return run_worker(options.worker, options.known)
    result: dict[str, Any] = {
        "lengths": [SHORTEST, LONGEST],
        "texts_per_step": BATCH,
        "padding": {name: padding_share(options.rounds, name == PACKED) for name in (PADDED, PACKED)},
        "torch": torch.__version__,
    }
    result |= {f"{kind} text": compare(options.rounds, kind == "known") for kind in ("fresh", "known")}
    write_result("packed_step.json", result)


if __name__ == "__main__":
    main()
