"""`specdistill train-draft`: from two model names to a distilled draft in a directory of its own."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from collections.abc import Sequence as Many
from pathlib import Path
from typing import Any

import torch
import yaml

from specdistill import atomic_files
from specdistill.data.batch import Sequence
from specdistill.data.prompts import Prompt, encode_all, load_prompts, split_prompts
from specdistill.decoding import Sampling
from specdistill.distill import rollouts
from specdistill.distill.checkpoint import is_fresh_cut, save_draft
from specdistill.distill.config import TrainConfig
from specdistill.distill.heldout import HeldOut, alphas, gains
from specdistill.distill.model_card import model_card
from specdistill.distill.skd import Skd
from specdistill.distill.trainer import DraftTrainer, learning_rate
from specdistill.errors import DataError
from specdistill.evaluation.bench import write_answers
from specdistill.models import LanguageModel, ModelPair, load, load_pair
from specdistill.progress import Progress, Quiet

CONFIG_FILE = "specdistill.yaml"
ROLLOUTS_FILE = "rollouts.jsonl"


def train_draft(config: TrainConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Distils a draft and writes it as a plain checkpoint with its history, settings and model card.

    Args:
        config: What to train and how.
        progress: Where bars and remarks go.

    Returns:
        Summary: output, steps, best_step, alpha_before, alpha_after, gain (each by rule).

    Raises:
        SpecdistillError: Bad input (nothing was trained then), or training that diverged (the best draft is saved).
        KeyboardInterrupt: After the best draft so far was saved.
    """
    progress = progress or Quiet()
    if config.rollouts is not None and not Path(config.rollouts).is_file():
        raise DataError(f"--rollouts {config.rollouts} does not exist")
    for role, name in (("target", config.target), ("draft", config.draft)):
        load.check_exists(name, role)
    training, heldout = split_prompts(load_prompts(config.prompts), config.heldout_prompts)
    if config.method == "supervised-kd":
        rollouts.check_answers(training)
    output = Path(config.output)
    atomic_files.claim_output_directory(output)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)

    pair = load_pair(
        config.target,
        config.draft,
        device=config.device,
        dtype=config.dtype,
        draft_dtype=torch.float32,
        say=progress.say,
    )
    pair.target.model.requires_grad_(False)
    room = min(pair.target.max_context, pair.draft.max_context) - config.max_new_tokens
    encoded = encode_all(training, pair.target.tokenizer, room)
    heldout_encoded = encode_all(heldout, pair.target.tokenizer, room)
    atomic_files.write_text(output / CONFIG_FILE, yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))

    with _reported_interrupt(output, progress):
        sampling = Sampling(temperature=config.temperature, top_k=config.top_k, top_p=config.top_p, min_p=config.min_p)
        answers = write_answers(
            pair.target,
            heldout,
            heldout_encoded,
            sampling,
            config.max_new_tokens,
            config.seed,
            progress,
            "held-out answers",
        )
        source, reused = build_source(config, pair, training, encoded, sampling, output, progress)
        trainer = DraftTrainer(pair, source, reused, HeldOut(pair.target, answers, sampling), config, output, progress)
        interrupted = False
        try:
            trainer.train()
        except KeyboardInterrupt:
            interrupted = True
            raise
        finally:
            if trainer.best:
                summary = _finish(config, pair, trainer, output, len(training), len(heldout), interrupted)
    return summary


def build_source(
    config: TrainConfig,
    pair: ModelPair,
    prompts: Many[Prompt],
    encoded: Many[list[int]],
    sampling: Sampling,
    output: Path,
    progress: Progress,
) -> tuple[rollouts.Source, frozenset[Sequence]]:
    """The method's source of sequences, and those of them that come again every epoch."""
    own = rollouts.OnPolicy(
        pair.draft, prompts, encoded, sampling, config.max_new_tokens, config.batch_size, config.seed + 1
    )
    if config.method == "skd":
        skd = Skd(
            pair,
            prompts,
            encoded,
            sampling,
            top_k=config.skd_top_k,
            num_draft_tokens=config.skd_num_draft_tokens,
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size,
            seed=config.seed + 1,
        )
        return skd, frozenset()
    given = all(prompt.answer is not None for prompt in prompts)
    if config.method == "supervised-kd" or (config.method == "gkd" and given and config.rollouts is None):
        fixed = rollouts.given_answers(prompts, encoded, pair.target.tokenizer, config.max_new_tokens)
    elif config.rollouts is not None:
        fixed = rollouts.load_rollouts(Path(config.rollouts), prompts, encoded, pair.target.vocab_size)
    else:
        fixed = rollouts.target_rollouts(
            pair.target,
            prompts,
            encoded,
            sampling,
            per_prompt=config.rollouts_per_prompt,
            max_new_tokens=config.max_new_tokens,
            seed=config.seed,
            progress=progress,
            save_to=output / ROLLOUTS_FILE,
        )
    pool = rollouts.Pool(fixed, config.batch_size, config.seed)
    reused = frozenset(fixed)
    if config.method == "gkd":
        return rollouts.Mixture(own, pool, config.lmbda, config.seed + 2), reused
    if config.method == "distillspec":
        return rollouts.Phases(pool, own, round(target_fraction(config, pair.draft) * config.steps)), reused
    return pool, reused


def target_fraction(config: TrainConfig, draft: LanguageModel) -> float:
    """The configured share, or one by whether the draft was just cut out of the target.

    A fresh cut's own answers are noise: in benchmarks/results/smollm2_history.jsonl held-out alpha falls from 0.31 to
    0.22 within 30 steps of the switch to them.
    """
    if config.target_fraction is not None:
        return config.target_fraction
    return 1.0 if is_fresh_cut(draft) else 0.6


def _finish(
    config: TrainConfig,
    pair: ModelPair,
    trainer: DraftTrainer,
    output: Path,
    num_training: int,
    num_heldout: int,
    interrupted: bool,
) -> dict[str, Any]:
    """Writes what the run ended with."""
    if trainer.best_step == 0 and not interrupted:
        # Nothing beat the start: the output must still be a draft, and an honest one.
        _restore_start(config, pair.draft)
        save_draft(pair.draft, pair.target, output)
    gain = gains(trainer.best, trainer.start_records)
    summary = {
        "output": str(output),
        "steps": trainer.step,
        "best_step": trainer.best_step,
        "interrupted": interrupted,
        "learning_rate": learning_rate(config, pair.draft),
        "heldout_prompts": num_heldout,
        "training_prompts": num_training,
        "alpha_before": alphas(trainer.start_records),
        "alpha_after": alphas(trainer.best),
        "gain": {rule: estimate.to_json() for rule, estimate in gain.items()},
    }
    atomic_files.write_text(output / "README.md", model_card(config, pair, summary))
    return summary


def _restore_start(config: TrainConfig, draft: LanguageModel) -> None:
    start = load.load_model(config.draft, "draft", device=str(draft.device), dtype=torch.float32)
    draft.model.load_state_dict(start.model.state_dict())
    draft.weights_changed()


@contextlib.contextmanager
def _reported_interrupt(output: Path, progress: Progress) -> Iterator[None]:
    """Says on Ctrl-C what is left on disk; the caller decides the exit code."""
    try:
        yield
    except KeyboardInterrupt:
        kept = [name for name in ("model.safetensors", ROLLOUTS_FILE) if (output / name).is_file()]
        what = {
            0: "nothing was finished yet",
            1: f"kept {' '.join(kept)} (use finished rollouts again with --rollouts)",
            2: "kept the best draft so far and the rollouts (use them again with --rollouts)",
        }[len(kept)]
        progress.say(f"interrupted; in {output}: {what}")
        raise
