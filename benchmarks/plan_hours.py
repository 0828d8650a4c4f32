"""What `specdistill plan` reckons, against what each stage of training really takes on this CPU.

    python benchmarks/plan_hours.py --drafts DIR [DIR ...]      (about 5 minutes; nothing else may run meanwhile)

The machine's peak is measured first (a large float32 product; reading a large matrix once), so that plan can be told
100 % of it. What a stage takes longer than that is its utilisation: plan is right about sizes where drafts of several
depths, and the stages that are bound alike, have one utilisation. SmolLM2 is the target; on-policy steps of 8 answers
of at most 64 tokens to HumanEval prompts, float32, one thread, medians over steps. Writes
benchmarks/results/plan_hours.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from smollm2 import RESULTS
from training_step import BATCH, MAX_NEW, our_trainer

from specdistill.decoding import Sampling, generate_plain
from specdistill.evaluation.plan import plan
from specdistill.evaluation.plan_config import PlanConfig

STEPS = 4


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median_of(call: Callable[[], object], repeats: int) -> float:
    call()
    return statistics.median(seconds(call) for _ in range(repeats))


def machine() -> dict[str, float]:
    """10^12 FLOP/s of a product of 2048, and 10^9 byte/s of a matrix-vector product of half a GiB."""
    square, tall = torch.randn(2048, 2048), torch.randn(65536, 2048)
    vector = torch.randn(2048)
    return {
        "tflops": 2 * 2048**3 / median_of(lambda: square @ square, 7) / 1e12,
        "bandwidth": tall.numel() * 4 / median_of(lambda: tall @ vector, 7) / 1e9,
    }


def parameters(model) -> int:
    """Each weight once, tied or not."""
    return sum(each.numel() for each in model.parameters())


def stages(draft: str, peak: dict[str, float]) -> dict:
    """Seconds of each stage, and plan's for the same work at 100 % of the peak."""
    with tempfile.TemporaryDirectory() as folder:
        trainer, source = our_trainer(draft, "distillspec", Path(folder))
        target, times, answered, asked = trainer.target, [], 0, 0
        for step in range(STEPS + 1):
            trainer.draft.model.eval()
            start = time.perf_counter()
            sequences = source.next_batch(step + 1)
            took = {"draft writes": time.perf_counter() - start}
            prompts = [list(each.prompt_ids) for each in sequences]
            written: list = []
            took["target writes"] = seconds(
                lambda prompts=prompts, written=written: written.extend(
                    generate_plain(target, prompts, sampling=Sampling(), max_new_tokens=MAX_NEW, seeds=[0] * BATCH)
                )
            )
            took["target labels"] = seconds(lambda sequences=sequences: trainer._states.of(sequences))
            trainer.draft.model.train()
            whole = seconds(lambda sequences=sequences: trainer._one_step(sequences))
            took["draft trains"] = whole - took["target labels"]
            # Per token that plan counts: answers differ in length, by who wrote them and from step to step.
            own, theirs = (sum(len(ids) for ids in each) for each in (
                [each.answer_ids for each in sequences], [each.token_ids for each in written],
            ))  # fmt: skip
            read = sum(map(len, prompts))
            passed = own + read
            counts = {"draft writes": own, "target writes": theirs, "target labels": passed, "draft trains": passed}
            if step:
                times.append({stage: took[stage] / counts[stage] for stage in took})
                answered, asked = answered + own, asked + read
        config = PlanConfig.flat(
            target_params=str(parameters(target.model)), draft_params=str(parameters(trainer.draft.model)),
            dtype="float32", vocab_size=target.vocab_size, prompts=BATCH, rollouts_per_prompt=1, epochs=1.0,
            prompt_tokens=round(asked / STEPS / BATCH), answer_tokens=round(answered / STEPS / BATCH),
            on_policy_fraction=1.0, batch_size=BATCH, micro_batch_size=BATCH, gpus=1, gpu="custom",
            gpu_tflops=peak["tflops"], gpu_bandwidth=peak["bandwidth"], gpu_memory=16.0, utilisation=1.0,
            decode_utilisation=1.0, decode_batch=BATCH,
        )  # fmt: skip
    reckoned = plan(config).to_json()
    tokens = reckoned["tokens"]
    counted = {"draft writes": "own", "target writes": "written", "target labels": "labelled"}
    found = {}
    for stage in ("target writes", "target labels", "draft writes", "draft trains"):
        measured = statistics.median(each[stage] for each in times)
        planned = reckoned["gpu_hours"][stage] * 3600 / tokens[counted.get(stage, "trained_with_prompts")]
        found[stage] = {"seconds_per_token": measured, "planned": planned, "utilisation": round(planned / measured, 3)}
    found["draft_params"] = parameters(trainer.draft.model)
    print(json.dumps(found), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drafts", nargs="+", required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    peak = machine()
    print(json.dumps(peak), flush=True)
    drafts = [stages(draft, peak) for draft in options.drafts]
    result = {"torch": torch.__version__, "batch": BATCH, "max_new_tokens": MAX_NEW, "peak": peak, "drafts": drafts}
    (RESULTS / "plan_hours.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
