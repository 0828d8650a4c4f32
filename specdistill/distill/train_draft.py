"""`specdistill train-draft`: from two model names to a distilled draft in a directory of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainerCallback

from specdistill.data.batch import Example
from specdistill.data.prompt_checks import warn_about_prompts
from specdistill.data.prompts import Prompt, encode_all, load_prompts, split_prompts
from specdistill.decoding import Guidance
from specdistill.distill.answers import scorers
from specdistill.distill.answers.engine import MakeEngine, build_engine, check_make_engine
from specdistill.distill.answers.shards import RolloutSettings, check_answers
from specdistill.distill.config import TrainConfig
from specdistill.distill.model_card import model_card
from specdistill.distill.processes import sharding
from specdistill.distill.processes.ranks import Ranks, join
from specdistill.distill.sequences.build import SequenceInputs, build_source
from specdistill.distill.target.guidance import build_guidance
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.target.place import OpenTarget
from specdistill.distill.training import checkpoints, guard_rails, lora
from specdistill.distill.training.callbacks import check_trackers
from specdistill.distill.training.heldout import HeldOutScorer
from specdistill.distill.training.heldout_answers import heldout_answers, heldout_scorer
from specdistill.distill.training.loss import load_reference
from specdistill.distill.training.step import learning_rate
from specdistill.distill.training.trainer import DraftTrainer
from specdistill.errors import ConfigError
from specdistill.evaluation.summaries import TrainSummary
from specdistill.files import atomic, run_settings
from specdistill.models import LanguageModel, ModelPair, load, load_pair
from specdistill.models.checkpoint import save_draft
from specdistill.progress import Progress, Quiet

SUMMARY_FILE = "summary.json"
_MAY_CHANGE = {
    *("resume", "device", "threads", "output", "report_to"),
    *("target_server", "server_model", "server_concurrency", "server_patience"),
}


def train_draft(
    config: TrainConfig,
    progress: Progress | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    make_engine: MakeEngine | None = None,
) -> TrainSummary:
    """Distils a draft and writes it as a plain checkpoint with its history, settings and model card.

    Args:
        config: What to train and how.
        progress: Where bars and remarks go.
        callbacks: transformers' callbacks, called as `transformers.Trainer` would.
        make_engine: Engine of --rollout-engine vllm: `specdistill.serving.engines.vllm.VllmEngine`.

    Returns:
        Steps, and the held-out scores before and after with their paired difference.

    Raises:
        SpecdistillError: Bad input (nothing was trained then), or training that diverged (the best draft is saved).
        KeyboardInterrupt: After the best draft so far was saved.
    """
    prompts = _check_before_loading(config)
    check_make_engine(config.on_policy, make_engine)
    ranks = _join(config)
    progress = progress if progress is not None and ranks.is_main else Quiet()
    output = Path(config.output)
    if ranks.is_main:
        run_settings.claim_run(output, config.to_flat(), config.resume, _MAY_CHANGE, SUMMARY_FILE)
    config.machine.limit_threads()
    torch.manual_seed(config.seed)
    run = _load(config, prompts, output, progress, ranks)
    with guard_rails.reported_interrupt(output, progress):
        trainer = _build_trainer(run, callbacks, make_engine)
        summary = _train(run, trainer)
    ranks.wait()
    if ranks.is_main:
        # Only now: whatever ended the run before can be resumed from.
        atomic.write_text(output / SUMMARY_FILE, json.dumps(summary.to_json(), indent=1) + "\n")
        checkpoints.remove(output)
    return summary


@dataclass(frozen=True)
class _Prompts:
    """Everything that was read before any model: the prompts' two sides, and the reward function."""

    training: list[Prompt]
    heldout: list[Prompt]
    reward: scorers.Scorer | None


@dataclass(frozen=True)
class _Run:
    """A run with its models loaded."""

    config: TrainConfig
    prompts: _Prompts
    training: list[list[int]]
    heldout: list[list[int]]
    """Both sides of the prompts, in the target's ids."""
    pair: ModelPair
    target: OpenTarget
    reference: LanguageModel | None
    guidance: Guidance | None
    output: Path
    progress: Progress
    ranks: Ranks

    @property
    def shares_target(self) -> bool:
        """Whether several ranks hold the target's weights in shares."""
        return self.config.processes.shards_target and self.ranks.world > 1


def _check_before_loading(config: TrainConfig) -> _Prompts:
    """Finds everything that can be wrong without looking at a model."""
    sequences, loss, objective = config.sequences, config.loss, config.objective
    sequences.check_files(config.chat)
    for role, name in (("target", config.target), ("draft", config.draft), ("reference", loss.reference)):
        if name is not None:
            load.check_exists(name, role)
    config.place.check(objective.kind, objective.temperature, config.sampling.temperature, config.chat)
    training, heldout = split_prompts(load_prompts(config.prompts, config.chat), sequences.heldout_prompts)
    if config.recipe.given_answers and sequences.text is None and config.place.name != "stored":
        check_answers(training, config.method)
    if config.method == "best-of-n":
        scorers.check_scorer(sequences.scorer, training)
    config.optimiser.check_machine()
    check_trackers(config.evaluation.report_to)
    reward = scorers.load_function(loss.reward, "--reward") if loss.reward else None
    return _Prompts(training, heldout, reward)


def _join(config: TrainConfig) -> Ranks:
    """Joins the processes that train together, and refuses what their number does not allow."""
    sharding.check_launch()
    ranks = join(config.machine.device)
    if config.processes.shard != "none" and ranks.world == 1:
        raise ConfigError("--shard splits weights among processes; start several with accelerate launch --multi_gpu")
    if config.on_policy.uses_engine and ranks.world > 1:
        raise ConfigError("--rollout-engine vllm runs in one process; train without accelerate launch")
    return ranks


def _load(config: TrainConfig, prompts: _Prompts, output: Path, progress: Progress, ranks: Ranks) -> _Run:
    """Loads the models, encodes the prompts, and writes the run's settings."""
    place = config.place
    # Before any weights are read: a server that is not there is found at once.
    connection = place.connect(progress.say)
    shards_target = config.processes.shards_target
    pair = load_pair(
        config.target,
        config.draft,
        device=ranks.device or config.machine.device,
        # Each layer moves to its device when it is sharded: the whole never lies there.
        target_device="cpu" if shards_target else None,
        dtype=config.target_settings.dtype,
        draft_dtype=torch.float32,
        # A server's text is read by its own tokenizer only.
        other_tokenizer=not config.objective.needs_target and place.has_weights,
        target_weights=place.has_weights,
        keep_target=place.memory,
        say=progress.say,
    )
    pair.target.model.requires_grad_(False)
    if shards_target and ranks.world > 1:
        sharding.shard_target(pair.target, ranks)
    reference = None if config.loss.reference is None else load_reference(config.loss.reference, pair, progress.say)
    guidance = build_guidance(config.target_settings, pair.target, config.chat)
    target = place.open(pair.target, connection)
    room = min(target.max_context, pair.draft.max_context) - config.sequences.max_new_tokens
    training = encode_all(prompts.training, pair.target.tokenizer, room)
    heldout = encode_all(prompts.heldout, pair.target.tokenizer, room)
    warn_about_prompts([*prompts.training, *prompts.heldout], [*training, *heldout], pair.target, progress.say)
    if config.optimiser.lora_rank:
        lora.add_adapters(pair.draft.model, config.optimiser.lora_rank)
    if ranks.is_main:
        run_settings.write(output, config.to_flat() | {"resume": False})
    ranks.wait()
    return _Run(config, prompts, training, heldout, pair, target, reference, guidance, output, progress, ranks)


def _build_trainer(run: _Run, callbacks: Sequence[TrainerCallback], make_engine: MakeEngine | None) -> DraftTrainer:
    config, pair, ranks = run.config, run.pair, run.ranks
    settings = RolloutSettings(config.sampling, config.sequences.max_new_tokens, config.seed, guidance=run.guidance)
    answers = heldout_answers(
        run.target,
        run.prompts.heldout,
        run.heldout,
        settings,
        run.output,
        run.progress,
        ranks,
        sharded=run.shares_target,
    )
    engine = build_engine(config.on_policy, make_engine, pair.draft, run.training, settings.max_new_tokens)
    source, reused = build_source(
        SequenceInputs(
            method=config.recipe,
            settings=config.sequences,
            pair=pair,
            target=run.target,
            prompts=run.prompts.training,
            encoded=run.training,
            sampling=config.sampling,
            batch_size=config.optimiser.batch_size,
            steps=config.optimiser.steps,
            seed=config.seed,
            output=run.output,
            progress=run.progress,
            guidance=run.guidance,
            engine=engine,
            push_every=config.on_policy.push_every,
            needs_labels=config.objective.needs_target,
            ranks=ranks,
        )
    )
    return DraftTrainer(
        pair,
        source,
        TargetStates(pair.target, reused, run.guidance, lockstep=run.shares_target),
        _scorer(run, answers),
        config.objective,
        config.optimiser,
        config.evaluation,
        run.output,
        run.progress,
        title=f"training ({config.method})",
        reference=run.reference,
        reward=None
        if run.prompts.reward is None
        else scorers.example_scorer(run.prompts.reward, run.prompts.training, pair.draft),
        callbacks=callbacks,
        ranks=ranks,
        shards_draft=config.processes.shards_draft,
        labelled=not config.place.has_weights,
        resume=config.resume,
    )


def _scorer(run: _Run, answers: Sequence[Example]) -> HeldOutScorer:
    return heldout_scorer(
        run.pair,
        run.target,
        run.prompts.heldout,
        answers,
        run.config.sampling,
        run.config.objective.temperature,
        run.config.evaluation.rule,
        run.guidance,
    )


def _train(run: _Run, trainer: DraftTrainer) -> TrainSummary:
    """Trains, and writes what the run ended with however it ended."""
    interrupted = False
    try:
        trainer.train()
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        if trainer.best is not None:
            summary = _finish(run, trainer, interrupted)
    return summary


def _finish(run: _Run, trainer: DraftTrainer, interrupted: bool) -> TrainSummary:
    """Writes the model card, and the start where nothing beat it."""
    pair, scorer = run.pair, trainer.scorer
    if trainer.best_step == 0 and not interrupted and run.ranks.is_main:
        # Nothing beat the start: the output must still be a draft, and an honest one.
        start = load.load_model(run.config.draft, "draft", device=str(pair.draft.device), dtype=torch.float32)
        save_draft(start, pair.target if pair.same_tokenizer else pair.draft, run.output)
    summary = TrainSummary(
        output=str(run.output),
        steps=trainer.step,
        best_step=trainer.best_step,
        interrupted=interrupted,
        learning_rate=learning_rate(run.config.optimiser, pair.draft),
        heldout_prompts=len(run.prompts.heldout),
        training_prompts=len(run.prompts.training),
        processes=run.ranks.world,
        measure=scorer.measure,
        before=scorer.means(trainer.start_records),
        after=scorer.means(trainer.best),
        gain=scorer.gains(trainer.best, trainer.start_records),
    )
    if run.ranks.is_main:
        settings = run.config.to_flat() | {"divergence": run.config.objective.kind}
        atomic.write_text(run.output / "README.md", model_card(settings, pair, summary))
    return summary
