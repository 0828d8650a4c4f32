"""`specdistill train-draft`: from two model names to a distilled draft in a directory of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from specdistill.data.batch import Example
from specdistill.data.prompts import Prompt, encode, encode_all, load_prompts, split_prompts
from specdistill.data.texts import check_texts
from specdistill.decoding import Guidance, Sampling
from specdistill.distill.answers import scorers
from specdistill.distill.answers.engine import MakeEngine, build_engine, check_make_engine
from specdistill.distill.answers.shards import (
    RolloutSettings,
    check_answers,
    find_shards,
    load_rollouts,
    sample_rollouts,
)
from specdistill.distill.config import TrainConfig
from specdistill.distill.model_card import model_card
from specdistill.distill.processes import sharding
from specdistill.distill.processes.ranks import Ranks, join
from specdistill.distill.sequences.build import ROLLOUTS_DIRECTORY, Work, build_source
from specdistill.distill.sequences.retokenise import retokenise
from specdistill.distill.target import place
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.target.served import TargetServer
from specdistill.distill.training import checkpoints, lora
from specdistill.distill.training.callbacks import check_trackers
from specdistill.distill.training.heldout import HeldOut, HeldOutLabels, HeldOutText, Look, TokenLabeller
from specdistill.distill.training.trainer import DraftTrainer, Reward, learning_rate
from specdistill.errors import ConfigError, DataError, OutputError
from specdistill.files import atomic, run_settings
from specdistill.models import LanguageModel, ModelPair, load, load_pair, memory, vocabulary
from specdistill.models.checkpoint import save_draft
from specdistill.progress import Progress, Quiet

SUMMARY_FILE = "summary.json"
HELDOUT_DIRECTORY = "heldout"
_MAY_CHANGE = {
    *("resume", "device", "threads", "output", "report_to"),
    *("target_server", "server_model", "server_concurrency", "server_patience"),
}


def train_draft(
    config: TrainConfig,
    progress: Progress | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    make_engine: MakeEngine | None = None,
) -> dict[str, Any]:
    """Distils a draft and writes it as a plain checkpoint with its history, settings and model card.

    Args:
        config: What to train and how.
        progress: Where bars and remarks go.
        callbacks: transformers' callbacks, called as `transformers.Trainer` would.
        make_engine: Of --rollout-engine vllm: `specdistill.serving.engines.vllm.VllmEngine`.

    Returns:
        Summary: output, steps, best_step, and the held-out `measure` (alpha by rule) `before`, `after` and its `gain`.

    Raises:
        SpecdistillError: Bad input (nothing was trained then), or training that diverged (the best draft is saved).
        KeyboardInterrupt: After the best draft so far was saved.
    """
    training, heldout, reward = _check_before_loading(config)
    check_make_engine(config, make_engine)
    sharding.check_launch()
    ranks = join(config.device)
    if config.shard != "none" and ranks.world == 1:
        raise ConfigError("--shard parts weights among processes; start several with accelerate launch --multi_gpu")
    if config.rollout_engine != "transformers" and ranks.world > 1:
        raise ConfigError("--rollout-engine vllm runs in one process; train without accelerate launch")
    progress = progress if progress is not None and ranks.is_main else Quiet()
    output = Path(config.output)
    if ranks.is_main:
        _claim(output, config)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)

    # Before any weights are read: a server that is not there is found at once.
    reached = place.reach(config, progress.say)
    pair = load_pair(
        config.target,
        config.draft,
        device=ranks.device or config.device,
        # Each layer moves to its device when it is sharded: the whole never lies there.
        target_device="cpu" if config.shards_target else None,
        dtype=config.dtype,
        draft_dtype=torch.float32,
        # A server's text is read by its own tokenizer only.
        other_tokenizer=config.loss == "ce" and config.target_is_present,
        target_weights=config.target_is_present,
        keep_target=config.target_memory,
        say=progress.say,
    )
    pair.target.model.requires_grad_(False)
    if config.shards_target and ranks.world > 1:
        sharding.shard_target(pair.target, ranks)
    reference = _load_reference(config, pair, progress)
    guidance = _guidance(config, pair.target)
    store = place.open_labels(config)
    server = None if reached is None else TargetServer(reached, pair.target, config.server_top_k)
    longest = pair.target.max_context if server is None else server.max_context
    room = min(longest, pair.draft.max_context) - config.max_new_tokens
    encoded = encode_all(training, pair.target.tokenizer, room)
    heldout_encoded = encode_all(heldout, pair.target.tokenizer, room)
    if config.lora_rank:
        lora.add_adapters(pair.draft.model, config.lora_rank)
    if ranks.is_main:
        run_settings.write(output, _plain(config))
    ranks.wait()

    with _reported_interrupt(output, progress):
        sampling = Sampling(temperature=config.temperature, top_k=config.top_k, top_p=config.top_p, min_p=config.min_p)
        if store is not None:
            answers = place.answers(store, config, heldout, heldout_encoded, pair.target.vocab_size, copies=1)
        else:
            answers = _heldout_answers(
                pair.target, heldout, heldout_encoded, sampling, guidance, config, progress, ranks, server
            )
        engine = build_engine(config, make_engine, pair.draft, encoded)
        work = Work(config, pair, training, encoded, sampling, guidance, output, progress, ranks, store, engine, server)
        source, reused = build_source(work)
        trainer = DraftTrainer(
            pair,
            source,
            TargetStates(pair.target, reused, guidance, lockstep=config.shards_target and ranks.world > 1),
            _look(config, pair, heldout, answers, sampling, guidance, store or server),
            config,
            output,
            progress,
            reference=reference,
            reward=None if reward is None else _reward_of(reward, training, pair),
            callbacks=callbacks,
            ranks=ranks,
        )
        interrupted = False
        try:
            trainer.train()
        except KeyboardInterrupt:
            interrupted = True
            raise
        finally:
            if trainer.best is not None:
                summary = _finish(config, pair, trainer, output, len(training), len(heldout), interrupted, ranks)
    ranks.wait()
    if not ranks.is_main:
        return summary
    # Only now: whatever ended the run before can be resumed from.
    atomic.write_text(output / SUMMARY_FILE, json.dumps(summary, indent=1) + "\n")
    checkpoints.remove(output)
    return summary


def _check_before_loading(config: TrainConfig) -> tuple[list[Prompt], list[Prompt], scorers.Scorer | None]:
    """Everything that can be wrong without looking at a model; the prompts' two sides, and the reward function."""
    if config.rollouts is not None:
        if not Path(config.rollouts).is_dir():
            raise DataError(f"--rollouts {config.rollouts} is no directory of rollouts")
        find_shards(Path(config.rollouts))
    for role, name in (("target", config.target), ("draft", config.draft), ("reference", config.reference)):
        if name is not None:
            load.check_exists(name, role)
    if config.online is not None and not Path(config.online).is_dir():
        raise DataError(f"--online {config.online} is no directory; the server's RejectionLog makes it")
    place.check(config)
    memory.check(config.target_memory)
    if config.text is not None:
        check_texts(config.text)
    training, heldout = split_prompts(load_prompts(config.prompts), config.heldout_prompts)
    if config.method in ("sft", "supervised-kd") and config.text is None and config.soft_labels is None:
        check_answers(training, config.method)
    if config.method == "best-of-n":
        scorers.check_scorer(config.scorer, training)
    if config.lora_rank:
        lora.check_installed()
    if config.precision == "float16" and not torch.cuda.is_available():
        raise ConfigError("--precision float16 needs a GPU; use bfloat16 or float32")
    check_trackers(config.report_to)
    return training, heldout, scorers.load_function(config.reward, "--reward") if config.reward else None


def _claim(output: Path, config: TrainConfig) -> None:
    """Makes the output directory, or proves that the run in it is this one and may go on.

    Raises:
        OutputError: It holds something else, a finished run, or one of other settings.
    """
    if not (config.resume and run_settings.exists(output)):
        atomic.claim_output_directory(output)
        return
    if (output / SUMMARY_FILE).exists():
        raise OutputError(f"the run in {output} has ended; there is nothing to resume")
    kept = {key: value for key, value in _plain(config).items() if key not in _MAY_CHANGE}
    flags = run_settings.changed_flags(output, kept)
    if flags:
        own = output / run_settings.CONFIG_FILE
        raise OutputError(f"the run in {output} has another {flags}; resume it with --config {own} --resume")


def _heldout_answers(
    target: LanguageModel,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    sampling: Sampling,
    guidance: Guidance | None,
    config: TrainConfig,
    progress: Progress,
    ranks: Ranks,
    server: TargetServer | None,
) -> list[Example]:
    """The target's answers, kept in the output directory: a resumed run is judged on the same ones."""
    directory = Path(config.output) / HELDOUT_DIRECTORY
    settings = RolloutSettings(sampling, config.max_new_tokens, config.seed, guidance=guidance)
    if config.shards_target and ranks.world > 1:
        _write_in_lockstep(target, prompts, encoded, settings, directory, ranks)
    write = None if server is None else server.write
    bar: dict[str, Any] = {"progress": progress, "name": "held-out answers", "write": write}
    sample_rollouts(target, prompts, encoded, settings, copies=1, directory=directory, ranks=ranks, **bar)
    return load_rollouts(directory, prompts, encoded, target.vocab_size)


def _write_in_lockstep(
    target: LanguageModel,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    settings: RolloutSettings,
    directory: Path,
    ranks: Ranks,
) -> None:
    """A sharded target answers in all ranks at once: each pass is a collective, so all write the same answers."""
    finished = len(list(directory.glob("*.parquet"))) == settings.num_shards(len(prompts), copies=1)
    ranks.wait()
    if finished:
        return
    with tempfile.TemporaryDirectory() as own:
        sample_rollouts(target, prompts, encoded, settings, copies=1, directory=Path(own), progress=Quiet())
        if ranks.is_main:
            for shard in find_shards(Path(own)):
                atomic.write_bytes(directory / shard.name, shard.read_bytes())
    ranks.wait()


def _load_reference(config: TrainConfig, pair: ModelPair, progress: Progress) -> LanguageModel | None:
    if config.reference is None:
        return None
    source = load.find(config.reference, "reference", progress.say)
    vocabulary.check_same_vocabulary(pair.target.tokenizer, source.tokenizer, config.target, config.reference)
    reference = load.load_model(source, "reference", device=str(pair.draft.device), dtype=torch.float32)
    reference.model.requires_grad_(False)
    return reference


def _guidance(config: TrainConfig, target: LanguageModel) -> Guidance | None:
    if config.negative_prompt is None:
        return None
    negative = encode(Prompt("negative", ({"role": "user", "content": config.negative_prompt},)), target.tokenizer)
    guidance = Guidance(tuple(negative), config.guidance)
    guidance.check(target)
    return guidance


def _look(
    config: TrainConfig,
    pair: ModelPair,
    prompts: Sequence[Prompt],
    answers: Sequence[Example],
    sampling: Sampling,
    guidance: Guidance | None,
    labeller: TokenLabeller | None,
) -> Look:
    if labeller is not None:
        temperature = config.loss_temperature or config.temperature or 1.0
        return HeldOutLabels(labeller, answers, temperature, config.temperature == 0, config.rule)
    if pair.same_tokenizer:
        return HeldOut(pair.target, answers, sampling, config.rule, guidance)
    return HeldOutText(*retokenise(answers, prompts, pair))


def _reward_of(scorer: scorers.Scorer, prompts: Sequence[Prompt], pair: ModelPair) -> Reward:
    known = {prompt.id: prompt for prompt in prompts}

    def reward(sequence: Example) -> float:
        return scorer(known[sequence.prompt_id], pair.draft.decode(sequence.answer_ids))

    return reward


def _finish(
    config: TrainConfig,
    pair: ModelPair,
    trainer: DraftTrainer,
    output: Path,
    num_training: int,
    num_heldout: int,
    interrupted: bool,
    ranks: Ranks,
) -> dict[str, Any]:
    """Writes what the run ended with."""
    vocabulary = pair.target if pair.same_tokenizer else pair.draft
    if trainer.best_step == 0 and not interrupted and ranks.is_main:
        # Nothing beat the start: the output must still be a draft, and an honest one.
        start = load.load_model(config.draft, "draft", device=str(pair.draft.device), dtype=torch.float32)
        save_draft(start, vocabulary, output)
    look = trainer.look
    summary = {
        "output": str(output),
        "steps": trainer.step,
        "best_step": trainer.best_step,
        "interrupted": interrupted,
        "learning_rate": learning_rate(config, pair.draft),
        "heldout_prompts": num_heldout,
        "training_prompts": num_training,
        "processes": ranks.world,
        "measure": look.measure,
        "before": look.means(trainer.start_records),
        "after": look.means(trainer.best),
        "gain": {
            name: estimate.to_json() for name, estimate in look.gains(trainer.best, trainer.start_records).items()
        },
    }
    if ranks.is_main:
        atomic.write_text(output / "README.md", model_card(config, pair, summary))
    return summary


def _plain(config: TrainConfig) -> dict[str, Any]:
    return dataclasses.asdict(config) | {"report_to": list(config.report_to), "resume": False}


@contextlib.contextmanager
def _reported_interrupt(output: Path, progress: Progress) -> Iterator[None]:
    """Says on Ctrl-C what is left on disk; the caller decides the exit code."""
    try:
        yield
    except KeyboardInterrupt:
        kept = [name for name in ("model.safetensors", ROLLOUTS_DIRECTORY) if (output / name).exists()]
        what = {
            0: "nothing was finished yet",
            1: f"kept {' '.join(kept)}",
            2: "kept the best draft so far and the rollouts",
        }[len(kept)]
        progress.say(f"interrupted; in {output}: {what}; the same command with --resume goes on")
        raise
