"""A training step against TRL's, and an SKD step against one that passes through the target a second time.

    python benchmarks/training/training_step.py --draft DIR       (about 17 minutes; nothing else may run meanwhile)

1. On-policy: the draft answers a batch of prompts, both models read the answers, one optimiser step. Same pair
   (SmolLM2 and the draft, with its full head: TRL knows no trimmed ones), same prompts (HumanEval up to 200 tokens),
   batch, lengths, temperature, jsd(0.5), float32, one thread. TRL's GKDTrainer runs as shipped, with gradient
   checkpointing and therefore without a KV cache while it generates, and once more with checkpointing off. Each
   contestant has its own process and waits for its turn; who begins changes every round. Tokens are those that the loss
   counts. Memory is the resident set: its peak, and how much of that was not held before the step.
2. SKD: the target's hidden states come from the check, or from a second pass over the finished answers.

Writes benchmarks/results/training_step.json, which is also the last line of stdout.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.support.interleaved import Contestant, Interleaved, Turn, rotated
from benchmarks.support.results import write_result
from benchmarks.training.step_trainer import BATCH, MAX_NEW_TOKENS, load_step_trainer
from specdistill.evaluation.statistics import ratio

OURS = "specdistill"
EVERY_ROUND = (OURS, "trl-gkd", "trl-distillation")
AS_SHIPPED = "trl-gkd-as-shipped"
"""A step takes minutes, so it runs in a third of the rounds."""
THIRD = 3


def run_ours(draft: str, output: Path) -> None:
    """Takes turns until the comparing script ends the process."""
    trainer = load_step_trainer(draft, "distillspec", output)
    turns = Interleaved()
    step = 0
    while True:
        step += 1
        turns.begin()
        turns.tokens = trainer.train_on(trainer.write_examples(step))
        turns.end()


def run_worker(name: str, draft: str, output: Path) -> None:
    """The process of one contestant."""
    if name == OURS:
        return run_ours(draft, output)
    # TRL takes seconds to import.
    from benchmarks.training.trl_worker import run_trl

    run_trl(name != "trl-distillation", name == AS_SHIPPED, draft, output)


def take_turns(draft: str, rounds: int) -> dict[str, list[Turn]]:
    """Contestant -> its turns, after one that does not count."""
    workers = {
        name: Contestant(__file__, "--worker", name, "--draft", draft, TRL_EXPERIMENTAL_SILENCE="1")
        for name in (*EVERY_ROUND, AS_SHIPPED)
    }
    for worker in workers.values():
        worker.turn()
    turns: dict[str, list[Turn]] = {name: [] for name in workers}
    for number in range(rounds):
        for name in (*rotated(EVERY_ROUND, number), *([AS_SHIPPED] if number % THIRD == 0 else [])):
            turns[name].append(workers[name].turn())
            print(f"    {name}: {turns[name][-1]}", flush=True)
    for worker in workers.values():
        worker.stop()
    return turns


def compare_on_policy(draft: str, rounds: int) -> dict[str, Any]:
    """Speed and memory of each contestant, as the result file holds them."""
    turns = take_turns(draft, rounds)

    def per_token(name: str) -> list[float]:
        return [turn.seconds / turn.tokens for turn in turns[name]]

    result: dict[str, Any] = {}
    for name, own in turns.items():
        tokens = sum(turn.tokens for turn in own)
        result[name] = {
            "tokens_per_second": tokens / sum(turn.seconds for turn in own),
            "tokens_per_step": tokens / len(own),
            "peak_mib": max(turn.peak_mib for turn in own),
            "peak_above_held_mib": max(turn.above_mib for turn in own),
        }
        if name != OURS:
            same_rounds = per_token(OURS)[:: THIRD if name == AS_SHIPPED else 1]
            over = ratio(per_token(name), same_rounds)
            result[name]["specdistill_tokens_per_second_over_it"] = over.to_json()
    return result


def compare_skd(draft: str, rounds: int) -> dict[str, Any]:
    """Time of an SKD step that reuses hidden states, over one that computes them again."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = load_step_trainer(draft, "skd", Path(folder))
        seconds_per_token: dict[str, list[float]] = {"reuse": [], "second-pass": []}
        for step in range(1, 2 * rounds + 3):
            name = "reuse" if step % 2 else "second-pass"
            start = time.perf_counter()
            examples = trainer.write_examples(step)
            writing = time.perf_counter() - start
            if name == "second-pass":
                examples = [dataclasses.replace(example, target_hidden=None) for example in examples]
            tokens = trainer.train_on(examples)
            seconds = time.perf_counter() - start
            print(f"    skd, {name}: {seconds:.2f} s for {tokens} tokens, {writing:.2f} s of them writing", flush=True)
            # The first step of each kind warms up.
            if step > 2:
                seconds_per_token[name].append(seconds / tokens)
    over = ratio(seconds_per_token["reuse"], seconds_per_token["second-pass"])
    return {"seconds_over_second_pass": over.to_json()}


def with_full_head(draft: Path, folder: Path) -> str:
    """A copy of the draft that proposes the whole vocabulary."""
    shutil.copytree(draft, folder / "draft", ignore=shutil.ignore_patterns("draft_vocabulary.json", "rollouts*"))
    return str(folder / "draft")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draft", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", choices=[*EVERY_ROUND, AS_SHIPPED], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if options.worker:
            return run_worker(options.worker, str(options.draft), Path(folder))
        draft = with_full_head(options.draft, Path(folder))
        result = {
            "batch_size": BATCH,
            "max_new_tokens": MAX_NEW_TOKENS,
            "torch": torch.__version__,
            "on_policy": compare_on_policy(draft, options.rounds),
            "skd": compare_skd(draft, options.rounds),
        }
    write_result("training_step.json", result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
