"""A training step on texts of 20 to 200 tokens: padded, packed, and in halves of like length.

    python benchmarks/training/packed_step.py        (about 6 minutes)

Target and draft have SmolLM2-135M's shapes (30 layers, and 4 for the draft) and random weights, so nothing is
downloaded; float32, one thread, 8 texts a step, forward KL. A text's length is drawn evenly from 20 to 200 tokens, and
a quarter to three quarters of it are the prompt. `fresh text` counts the target's pass, as text that is written while
the draft trains needs it; `known text` has its hidden states from before, as answers that come again do.

`padded` is --packing=false. `packed` is what --packing does. `by length` is its rival, which needs no packing: the
step's texts are sorted, and the short and the long half are padded each for itself; their gradients add up. Each
contestant has its own process and waits for its turn; who begins changes every round, and all train on the same texts.
Tokens are those of the answers. Seconds are those that the one thread computes, so that other work on the machine
counts for little. Memory is the resident set.

Writes benchmarks/results/packed_step.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.support.interleaved import Interleaved, all_turns
from benchmarks.support.paths import RESULTS
from benchmarks.support.random_models import Shape, random_model
from benchmarks.support.results import load_result, write_result
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
BY_LENGTH = {"by length, in two halves": BATCH // 2}


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
    turns, step = Interleaved(time.process_time), 0
    while True:
        step += 1
        examples = examples_of(step)
        if name in BY_LENGTH:
            examples.sort(key=length_of)
        if known:
            # Any states take as long as the target's own.
            examples = [
                dataclasses.replace(one, target_hidden=torch.randn(len(one.answer_ids), TARGET.hidden))
                for one in examples
            ]
        draft.model.train()
        turns.begin()
        turns.tokens = runner.run(examples).tokens
        turns.end()


def padding_share(name: str, rounds: int) -> float:
    """Share of the tokens of all passes that belong to no text."""
    real = there = 0
    # The first step warms up.
    for step in range(2, rounds + 2):
        lengths = [length_of(one) for one in examples_of(step)]
        if name == PACKED:
            passes = [plan_rows(lengths, TARGET.hidden)]
        else:
            size, order = BY_LENGTH.get(name, BATCH), sorted(range(BATCH), key=lambda text: lengths[text])
            passes = [[[text] for text in order[start : start + size]] for start in range(0, BATCH, size)]
        real += sum(lengths)
        there += sum(len(rows) * max(sum(lengths[text] for text in row) for row in rows) for rows in passes)
    return 1 - real / there


def compare(rounds: int, known: bool) -> dict[str, Any]:
    """Speed and memory of each contestant, and its speed over the padded step's."""
    turns = all_turns(__file__, [PADDED, PACKED, *BY_LENGTH], rounds, *["--known"] * known)
    result = {}
    padded = [turn.tokens / turn.seconds for turn in turns[PADDED]]
    for name, own in turns.items():
        speeds = [turn.tokens / turn.seconds for turn in own]
        result[name] = {
            "padding": padding_share(name, rounds),
            "tokens_per_second": sum(turn.tokens for turn in own) / sum(turn.seconds for turn in own),
            "over_padded": ratio(speeds, padded).to_json(),
            "peak_above_held_mib": max(turn.above_mib for turn in own),
        }
        print(f"    {'known' if known else 'fresh'} text, {name}: {result[name]}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument(
        "--text", choices=["fresh", "known"], help="measure one kind of text, and keep the other's rows"
    )
    parser.add_argument("--worker", choices=[PADDED, PACKED, *BY_LENGTH], help=argparse.SUPPRESS)
    parser.add_argument("--known", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.worker:
        return run_worker(options.worker, options.known)
    result: dict[str, Any] = {"lengths": [SHORTEST, LONGEST], "texts_per_step": BATCH, "torch": torch.__version__}
    if options.text and (RESULTS / "packed_step.json").is_file():
        result = load_result("packed_step.json") | result
    for kind in [options.text] if options.text else ["fresh", "known"]:
        result[f"{kind} text"] = compare(options.rounds, kind == "known")
    write_result("packed_step.json", result)


if __name__ == "__main__":
    main()
