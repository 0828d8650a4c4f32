"""A training step against TRL's, and an SKD step against one that looks at the target a second time.

    python benchmarks/training_step.py --draft DIR          (about 17 minutes; nothing else may run meanwhile)

1. On-policy: the draft answers a batch of prompts, both models look at the answers, one optimiser step. Same pair
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
import tempfile
import time
from pathlib import Path

import torch
from smollm2 import RESULTS, target_file
from turns import Contestant, Turns

from specdistill.evaluation.statistics import ratio

BATCH, MAX_PROMPT, MAX_NEW = 8, 200, 64
CONTESTANTS = ("specdistill", "trl-gkd", "trl-distillation")
AS_SHIPPED = "trl-gkd-as-shipped"


def short_prompts(tokenizer) -> list:
    from specdistill.data.prompts import encode, load_prompts

    return [prompt for prompt in load_prompts("humaneval") if len(encode(prompt, tokenizer)) <= MAX_PROMPT]


def our_trainer(draft: str, method: str, output: Path):
    """(trainer, its source) of specdistill, ready for `_one_step`."""
    from specdistill.data.prompts import encode_all
    from specdistill.decoding import Sampling
    from specdistill.distill.config import TrainConfig
    from specdistill.distill.sequences.build import Work, build_source
    from specdistill.distill.sequences.on_policy import OnPolicy
    from specdistill.distill.target.hidden_states import TargetStates
    from specdistill.distill.training.heldout import HeldOut
    from specdistill.distill.training.trainer import DraftTrainer
    from specdistill.models import load_pair
    from specdistill.progress import Quiet

    pair = load_pair(str(target_file()), draft, say=lambda text: None)
    pair.target.model.requires_grad_(False)
    config = TrainConfig.flat(
        target=str(target_file()),
        draft=draft,
        output=str(output),
        method=method,  # pyright: ignore[reportArgumentType]
        divergence="jsd" if method != "skd" else "auto",
        batch_size=BATCH,
        max_new_tokens=MAX_NEW,
    )
    prompts = short_prompts(pair.target.tokenizer)
    encoded = encode_all(prompts, pair.target.tokenizer, 1000)
    if method == "skd":
        source, _ = build_source(Work(config, pair, prompts, encoded, Sampling(), None, output, Quiet()))
    else:
        source = OnPolicy(pair.draft, prompts, encoded, Sampling(), MAX_NEW, BATCH, 1)
    look = HeldOut(pair.target, [], Sampling(), "sampled")
    return DraftTrainer(pair, source, TargetStates(pair.target), look, config, output, Quiet()), source


def work_ours(draft: str, output: Path) -> None:
    trainer, source = our_trainer(draft, "distillspec", output)
    turns = Turns()
    step = 0
    while True:
        step += 1
        turns.begin()
        trainer.draft.model.train()
        turns.tokens = trainer._one_step(source.next_batch(step))["tokens"]
        turns.end()


def work_trl(name: str, draft: str, output: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer
    from trl.trainer.distillation_config import DistillationConfig
    from trl.trainer.distillation_trainer import DistillationTrainer

    from specdistill.models import load_model

    target = load_model(str(target_file()))
    model = AutoModelForCausalLM.from_pretrained(draft, dtype=torch.float32)
    tokenizer = target.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    shared = {
        "output_dir": str(output),
        "per_device_train_batch_size": BATCH,
        "max_steps": 1000,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": name == AS_SHIPPED,
        "report_to": "none",
        "temperature": 1.0,
        "beta": 0.5,
        "learning_rate": 3e-4,
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 10**6,
    }
    prompts = short_prompts(tokenizer) * 20
    if name.startswith("trl-gkd"):
        answered = [{"messages": [*each.messages, {"role": "assistant", "content": "Yes."}]} for each in prompts]
        config = GKDConfig(**shared, lmbda=1.0, max_new_tokens=MAX_NEW, max_length=512)
        kind, rows = GKDTrainer, Dataset.from_list(answered)
    else:
        config = DistillationConfig(**shared, max_completion_length=MAX_NEW)
        kind, rows = DistillationTrainer, Dataset.from_list([{"prompt": list(each.messages)} for each in prompts])

    class Counting(kind):  # pyright: ignore[reportGeneralTypeIssues]
        def compute_loss(self, model, inputs, *arguments, **named):
            found = inputs["completion_mask"].sum() if "completion_mask" in inputs else (inputs["labels"] != -100).sum()
            turns.tokens += int(found)
            return super().compute_loss(model, inputs, *arguments, **named)

    class Wait(TrainerCallback):
        def on_step_begin(self, *arguments, **named):
            turns.begin()

        def on_step_end(self, *arguments, **named):
            turns.end()

    trainer = Counting(
        model=model,
        teacher_model=target.model,
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[Wait()],
    )
    turns = Turns()
    trainer.train()


def on_policy(draft: str, rounds: int) -> dict:
    workers = {
        name: Contestant(__file__, "--worker", name, "--draft", draft, TRL_EXPERIMENTAL_SILENCE="1")
        for name in (*CONTESTANTS, AS_SHIPPED)
    }
    for worker in workers.values():
        worker.step()
    found: dict[str, list[dict]] = {name: [] for name in workers}
    for number in range(rounds):
        for name in (*CONTESTANTS[number % 3 :], *CONTESTANTS[: number % 3]):
            found[name].append(workers[name].step())
            print(f"    {name}: {found[name][-1]}", flush=True)
        if number % 3 == 0:
            # It takes minutes: a third of the rounds will do.
            found[AS_SHIPPED].append(workers[AS_SHIPPED].step())
            print(f"    {AS_SHIPPED}: {found[AS_SHIPPED][-1]}", flush=True)
    for worker in workers.values():
        worker.process.kill()

    def per_token(name: str) -> list[float]:
        return [each["seconds"] / each["tokens"] for each in found[name]]

    result: dict = {
        name: {
            "tokens_per_second": sum(each["tokens"] for each in rows) / sum(each["seconds"] for each in rows),
            "tokens_per_step": sum(each["tokens"] for each in rows) / len(rows),
            "peak_mib": max(each["peak"] for each in rows),
            "peak_above_held_mib": max(each["above"] for each in rows),
        }
        for name, rows in found.items()
    }
    for name in (*CONTESTANTS[1:], AS_SHIPPED):
        same_rounds = slice(0, None, 3) if name == AS_SHIPPED else slice(None)
        over = ratio(per_token(name), per_token("specdistill")[same_rounds])
        result[name]["specdistill_tokens_per_second_over_it"] = over.to_json()
    return result


def skd(draft: str, rounds: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        trainer, source = our_trainer(draft, "skd", Path(folder))
        seconds: dict[str, list[float]] = {"reuse": [], "second-pass": []}
        for step in range(1, 2 * rounds + 3):
            name = "reuse" if step % 2 else "second-pass"
            start = time.perf_counter()
            trainer.draft.model.train()
            sequences = source.next_batch(step)
            written = time.perf_counter() - start
            if name == "second-pass":
                sequences = [dataclasses.replace(each, target_hidden=None) for each in sequences]
            tokens = trainer._one_step(sequences)["tokens"]
            took = time.perf_counter() - start
            print(f"    skd, {name}: {took:.2f} s for {tokens} tokens, {written:.2f} s of them writing", flush=True)
            if step > 2:
                seconds[name].append(took / tokens)
    return {"seconds_over_second_pass": ratio(seconds["reuse"], seconds["second-pass"]).to_json()}


def full_head(draft: Path, folder: Path) -> str:
    """A copy of the draft that proposes the whole vocabulary."""
    shutil.copytree(draft, folder / "draft", ignore=shutil.ignore_patterns("draft_vocabulary.json", "rollouts*"))
    return str(folder / "draft")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draft", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.worker:
        with tempfile.TemporaryDirectory() as folder:
            if options.worker == "specdistill":
                return work_ours(str(options.draft), Path(folder))
            return work_trl(options.worker, str(options.draft), Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        draft = full_head(options.draft, Path(folder))
        result = {
            "batch_size": BATCH,
            "max_new_tokens": MAX_NEW,
            "torch": torch.__version__,
            "on_policy": on_policy(draft, options.rounds),
            "skd": skd(draft, options.rounds),
        }
    (RESULTS / "training_step.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
