"""The estimates of `specdistill plan` against the time that each stage of training really takes on this CPU.

    python benchmarks/training/plan_hours.py --drafts DIR [DIR ...]      (about 5 minutes; nothing else may run)

The machine's peak is measured first (a large float32 product; reading a large matrix once), so that plan can be told
100 % of it. The ratio of that time to the measured one is a stage's utilisation. Plan is right about sizes where drafts
of several depths, and stages with the same bottleneck, have the same utilisation. SmolLM2 is the target; on-policy
steps of 8 answers of at most 64 tokens to HumanEval prompts, float32, one thread, medians over steps. Writes
benchmarks/results/plan_hours.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.support.results import write_result
from benchmarks.training.step_trainer import BATCH, MAX_NEW_TOKENS, StepTrainer, load_step_trainer
from specdistill.decoding import Generation, Sampling, generate_plain
from specdistill.evaluation.plan import plan
from specdistill.evaluation.plan_config import PlanConfig

STEPS = 4


@dataclass(frozen=True)
class Peak:
    """Speed of this machine."""

    tflops: float
    """10^12 FLOP/s of a product of 2048."""
    bandwidth: float
    """10^9 byte/s of a matrix-vector product of half a GiB."""


@dataclass(frozen=True)
class MeasuredStep:
    """One training step."""

    seconds_per_token: dict[str, float]
    """Stage -> seconds per token that plan counts: answers differ in length, by who wrote them and by step."""
    prompt_tokens: int
    answer_tokens: int


def seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    call()
    return statistics.median(seconds_of(call) for _ in range(repeats))


def measure_peak() -> Peak:
    square, tall = torch.randn(2048, 2048), torch.randn(65536, 2048)
    vector = torch.randn(2048)
    return Peak(
        tflops=2 * 2048**3 / median_seconds(lambda: square @ square, 7) / 1e12,
        bandwidth=tall.numel() * 4 / median_seconds(lambda: tall @ vector, 7) / 1e9,
    )


def num_parameters(model) -> int:
    """Each weight once, tied or not."""
    return sum(parameter.numel() for parameter in model.parameters())


def measure_step(trainer: StepTrainer, step: int) -> MeasuredStep:
    """Runs every stage of one step by itself."""
    trainer.pair.draft.model.eval()
    start = time.perf_counter()
    examples = trainer.source.next_batch(step)
    seconds = {"draft writes": time.perf_counter() - start}
    prompts = [list(example.prompt_ids) for example in examples]
    written: list[Generation] = []

    def target_writes() -> None:
        settings = {"sampling": Sampling(), "max_new_tokens": MAX_NEW_TOKENS, "seeds": [0] * BATCH}
        written.extend(generate_plain(trainer.pair.target, prompts, **settings))

    seconds["target writes"] = seconds_of(target_writes)
    seconds["target labels"] = seconds_of(lambda: trainer.states.hidden_states(examples))
    # A training step labels its examples too.
    seconds["draft trains"] = seconds_of(lambda: trainer.train_on(examples)) - seconds["target labels"]
    own = sum(len(example.answer_ids) for example in examples)
    read = sum(map(len, prompts))
    tokens = {
        "draft writes": own,
        "target writes": sum(len(answer.token_ids) for answer in written),
        "target labels": own + read,
        "draft trains": own + read,
    }
    return MeasuredStep({stage: seconds[stage] / tokens[stage] for stage in seconds}, read, own)


def plan_at_peak(trainer: StepTrainer, steps: list[MeasuredStep], peak: Peak) -> dict[str, float]:
    """Stage -> plan's seconds per token for the same work at 100 % of the peak."""
    answers = BATCH * len(steps)
    estimate = plan(
        PlanConfig.flat(
            target_params=str(num_parameters(trainer.pair.target.model)),
            draft_params=str(num_parameters(trainer.pair.draft.model)),
            dtype="float32",
            vocab_size=trainer.pair.target.vocab_size,
            prompts=BATCH,
            rollouts_per_prompt=1,
            epochs=1.0,
            prompt_tokens=round(sum(step.prompt_tokens for step in steps) / answers),
            answer_tokens=round(sum(step.answer_tokens for step in steps) / answers),
            on_policy_fraction=1.0,
            batch_size=BATCH,
            micro_batch_size=BATCH,
            gpus=1,
            gpu="custom",
            gpu_tflops=peak.tflops,
            gpu_bandwidth=peak.bandwidth,
            gpu_memory=16.0,
            utilisation=1.0,
            decode_utilisation=1.0,
            decode_batch=BATCH,
        )
    )
    tokens = estimate.tokens.by_stage()
    return {stage: estimate.gpu_hours[stage] * 3600 / tokens[stage] for stage in tokens}


def measure_draft(draft: str, peak: Peak) -> dict[str, Any]:
    """Every stage with one draft, as the result file holds it."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = load_step_trainer(draft, "distillspec", Path(folder))
        # The first step warms up.
        steps = [measure_step(trainer, step) for step in range(1, STEPS + 2)][1:]
    result: dict[str, Any] = {}
    for stage, planned in plan_at_peak(trainer, steps, peak).items():
        measured = statistics.median(step.seconds_per_token[stage] for step in steps)
        result[stage] = {
            "seconds_per_token": measured,
            "planned": planned,
            "utilisation": round(planned / measured, 3),
        }
    result["draft_params"] = num_parameters(trainer.pair.draft.model)
    print(json.dumps(result), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drafts", nargs="+", required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    peak = measure_peak()
    print(json.dumps(asdict(peak)), flush=True)
    drafts = [measure_draft(draft, peak) for draft in options.drafts]
    header = {"torch": torch.__version__, "batch": BATCH, "max_new_tokens": MAX_NEW_TOKENS, "peak": asdict(peak)}
    write_result("plan_hours.json", header | {"drafts": drafts})


if __name__ == "__main__":
    main()
