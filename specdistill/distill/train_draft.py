"""`specdistill train-draft`: from two model names to a distilled draft in a directory of its own."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainerCallback

from specdistill.decoding import Guidance, build_guidance
from specdistill.distill.answers.engine import MakeEngine, build_engine, check_make_engine
from specdistill.distill.answers.scorers import example_scorer
from specdistill.distill.answers.shards import RolloutSettings
from specdistill.distill.before_loading import check_before_loading
from specdistill.distill.config import MAY_CHANGE, TrainConfig
from specdistill.distill.ending import finish
from specdistill.distill.processes import sharding
from specdistill.distill.processes.ranks import Ranks
from specdistill.distill.sequences.build import Built, SequenceInputs, build_source, text_block
from specdistill.distill.sequences.captured_rollouts import capture_rollouts
from specdistill.distill.sequences.rollback import prove_pair, refuse_states_of
from specdistill.distill.sequences.run_prompts import FoundRun, RunPrompts
from specdistill.distill.sequences.sources import NoText
from specdistill.distill.target import itself
from specdistill.distill.target.head_states import states_for
from specdistill.distill.target.place import OpenTarget
from specdistill.distill.target.stored_states import stored_outer_weights, with_states
from specdistill.distill.training import checkpoints, guard_rails, lora
from specdistill.distill.training.adaspec import load_reference
from specdistill.distill.training.anchors import Anchored
from specdistill.distill.training.head_start import check_head
from specdistill.distill.training.loss_settings import Objective
from specdistill.distill.training.measures import HeldOutMeasures
from specdistill.distill.training.packing import allow_packing, refuse_packing
from specdistill.distill.training.parallel_start import ParallelStart, install_proven, plan_parallel
from specdistill.distill.training.run_measures import MeasureInputs, build_measures
from specdistill.distill.training.start import judge_start, made_for
from specdistill.distill.training.step import learning_rate
from specdistill.distill.training.trainer import DraftTrainer
from specdistill.errors import SHORTER_TEXTS, out_of_memory_named
from specdistill.evaluation.summaries import TrainSummary
from specdistill.files import atomic, locks, run_settings
from specdistill.models import LanguageModel, ModelPair, load_pair
from specdistill.models.head_draft import HeadModel
from specdistill.progress import Progress, Quiet
from specdistill.settings.parts import defaults


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
        SpecdistillError: Bad input (nothing was trained then), or training that diverged (the draft so far is saved).
        KeyboardInterrupt: After the draft so far was saved.
    """
    config.machine.limit_threads()
    prompts = check_before_loading(config, progress or Quiet())
    check_make_engine(config.on_policy, make_engine)
    uses_engine = config.on_policy.uses_engine
    ranks = sharding.join_processes(config.machine.device, config.processes.shard, uses_engine=uses_engine)
    progress = progress if progress is not None and ranks.is_main else Quiet()
    output = Path(config.output)
    found = prompts.find(
        config.target,
        config.draft,
        config.place,
        config.sequences.max_new_tokens,
        other_tokenizer=not config.objective.needs_target and config.place.has_weights,  # a server knows its own only
        say=progress.say,
        target_base=config.adapter.target_base,
    )
    refuse_states_of(found.pair, config.method)
    refuse_packing(found.pair, config.optimiser.packing)
    config.for_draft(check_head(found.pair, config.method, config.to_flat(), defaults(TrainConfig)))
    with locks.output_lock(output, progress.say, wanted=ranks.is_main):
        if ranks.is_main:
            run_settings.claim_run(
                output, config.to_flat(), config.resume, MAY_CHANGE, run_settings.SUMMARY_FILE, prompts.hash
            )
            if run_settings.exists(output):
                run_settings.check_adapters(output, found.pair.adapter_labels)
        config.presets.announce(config.method, config.to_flat(), progress.say)
        torch.manual_seed(config.seed)
        run = _load(config, prompts, found, output, progress, ranks)
        with guard_rails.reported_interrupt(output, progress), out_of_memory_named(SHORTER_TEXTS):
            trainer, built = _build_trainer(run, callbacks, make_engine)
            summary = _train(run, trainer, built)
        ranks.wait()
        if ranks.is_main:
            # Only now: whatever ended the run before can be resumed from.
            text = json.dumps(summary.to_json(), indent=1, allow_nan=False) + "\n"
            atomic.write_text(output / run_settings.SUMMARY_FILE, text)
            checkpoints.remove(output)
        return summary


@dataclass(frozen=True)
class _Run:
    """A run with its models loaded."""

    config: TrainConfig
    prompts: RunPrompts
    training: list[list[int]]
    heldout: list[list[int]]
    """Both sides of the prompts, in the target's ids."""
    pair: ModelPair
    target: OpenTarget
    reference: LanguageModel | None
    guidance: Guidance | None
    parallel: ParallelStart | None
    """How the draft guesses several tokens in one pass; None for an ordinary draft."""
    objective: Objective
    watch: str
    output: Path
    progress: Progress
    ranks: Ranks

    @property
    def shares_target(self) -> bool:
        """Whether several ranks hold the target's weights in shares."""
        return self.config.processes.shards_target and self.ranks.world > 1


def _load(
    config: TrainConfig, prompts: RunPrompts, found: FoundRun, output: Path, progress: Progress, ranks: Ranks
) -> _Run:
    """Loads the models and writes the run's settings."""
    place, shards_target = config.place, config.processes.shards_target
    parallel = plan_parallel(found.pair, config.parallel_draft, [*found.training, *found.heldout], progress.say)
    pair = load_pair(
        config.target,
        config.draft,
        found=found.pair,
        device=ranks.device or config.machine.device,
        # Each layer moves to its device when it is sharded: the whole never lies there.
        target_device="cpu" if shards_target else None,
        dtype=config.target_settings.dtype,
        draft_dtype=torch.float32,
        target_weights=place.has_weights,
        outer=stored_outer_weights(place, found.pair),
        keep_target=place.memory,
        draft_answers=True,
        say=progress.say,
    )
    if place.has_weights and not config.teaches_itself:
        itself.refuse_same_weights(pair)
    pair.target.model.requires_grad_(False)
    prove_pair(pair, config.method, place.has_weights)
    reference = None if config.loss.reference is None else load_reference(config.loss.reference, pair, progress.say)
    allow_packing(pair, reference, config.optimiser.packing, progress.say, place.has_weights, parallel is not None)
    if shards_target and ranks.world > 1:
        sharding.shard_target(pair.target, ranks)
    guidance = build_guidance(config.target_settings, pair.target, config.chat, config.sequences.max_new_tokens)
    target = with_states(place.open(pair.target, found.connection, found.view), place, pair.draft)
    room = min(target.max_context, pair.draft.max_context) - config.sequences.max_new_tokens
    prompts.check_room(found, room, target.max_context - config.sequences.max_new_tokens)
    text_block(config.sequences, pair)
    prompts.say_split(config.recipe, config.sequences, place, progress.say)
    prompts.warn(found, pair.target, progress.say)
    if parallel is not None:
        install_proven(pair, parallel, config.objective.kind, progress.say)
    if config.optimiser.lora_rank:
        lora.add_adapters(pair.draft.model, config.optimiser.lora_rank, pair.draft.parallel if parallel else None)
    if config.on_policy.capture_steps:
        capture_rollouts(pair, config.method, place.has_weights, config.optimiser.batch_size, progress.say)
    if ranks.is_main:
        run_settings.write(output, config.to_flat() | {"resume": False})
        run_settings.keep_adapters(output, found.pair.adapter_labels)
        prompts.keep(output)
    ranks.wait()
    texts = found.training, found.heldout
    kind = config.for_draft(isinstance(pair.draft, HeadModel))
    return _Run(config, prompts, *texts, pair, target, reference, guidance, parallel, *kind, output, progress, ranks)


def _build_trainer(
    run: _Run, callbacks: Sequence[TrainerCallback], make_engine: MakeEngine | None
) -> tuple[DraftTrainer, Built]:
    """The trainer, and what was counted of the answers that it trains on."""
    config, pair, ranks = run.config, run.pair, run.ranks
    # First: whatever is wrong with the held-out prompts ends the run before rollouts are sampled.
    measures = _build_measures(run)
    made = functools.partial(made_for, config.draft, config.to_flat(), run.prompts.hash)
    idle = judge_start(measures, pair.draft, config.presets, made, ranks, run.progress.say)
    built = Built(NoText()) if idle is not None else _build_source(run, make_engine)
    source = built.source
    if run.parallel is not None:
        source = Anchored(source, pair.draft, config.parallel_draft, config.seed, run.progress.say, ranks)
    trainer = DraftTrainer(
        pair,
        source,
        states_for(pair, built.reused, run.guidance, lockstep=run.shares_target, stored=run.target.states),
        measures,
        *(run.objective, config.optimiser, config.evaluation, run.output, run.progress),
        title=f"training ({config.method})",
        reference=run.reference,
        reward=run.prompts.reward and example_scorer(run.prompts.reward, run.prompts.training, pair.draft),
        callbacks=callbacks,
        ranks=ranks,
        shards_draft=config.processes.shards_draft,
        labelled=run.target.labels_examples,
        resume=config.resume,
        idle=idle,
    )
    return trainer, built


def _build_measures(run: _Run) -> HeldOutMeasures:
    config, length = run.config, run.config.sequences.max_new_tokens
    inputs = MeasureInputs(
        pair=run.pair,
        target=run.target,
        prompts=run.prompts,
        encoded=run.heldout,
        method=config.recipe,
        settings=config.sequences,
        rollouts=RolloutSettings(config.sampling, length, config.seed, guidance=run.guidance),
        objective=run.objective,
        rule=config.evaluation.rule,
        watch=run.watch,
        output=run.output,
        progress=run.progress,
        ranks=run.ranks,
        shares_target=run.shares_target,
        uses_engine=config.on_policy.uses_engine,
    )
    return build_measures(inputs)


def _build_source(run: _Run, make_engine: MakeEngine | None) -> Built:
    config, pair = run.config, run.pair
    engine = build_engine(config.on_policy, make_engine, pair.draft, run.training, config.sequences.max_new_tokens)
    return build_source(
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
            ranks=run.ranks,
            documents=run.prompts.documents,
            judge=run.prompts.judge,
            rewarded=config.loss.reward is not None,
        )
    )


def _train(run: _Run, trainer: DraftTrainer, built: Built) -> TrainSummary:
    """Trains, and writes what the run ended with however it ended."""
    interrupted = False
    try:
        trainer.train()
    except KeyboardInterrupt:
        interrupted = True
        raise
    finally:
        if trainer.keeper.records and (trainer.has_draft or not interrupted):
            summary = finish(
                trainer,
                run.pair,
                run.prompts,
                built,
                run.parallel,
                run.config.to_flat() | {"divergence": run.config.objective.kind},
                run.ranks,
                learning_rate=learning_rate(run.config.optimiser, run.pair.draft),
                interrupted=interrupted,
            )
    if summary.disagreement is not None:
        run.progress.say(f"warning: {summary.disagreement}")
    return summary
