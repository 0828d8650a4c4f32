"""Writes what a run ended with: the start where nothing else is kept, the model card, and the summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from specdistill.distill.model_card import model_card
from specdistill.distill.processes.ranks import Ranks
from specdistill.distill.sequences.build import Built
from specdistill.distill.sequences.run_prompts import RunPrompts
from specdistill.distill.training.heldout_parallel import forgotten_skill, unlearned_guesses
from specdistill.distill.training.parallel_start import ParallelStart
from specdistill.distill.training.start import gain_sentence
from specdistill.distill.training.trainer import DraftTrainer
from specdistill.evaluation.summaries import ONE_BY_ONE, TrainSummary
from specdistill.files import atomic, run_settings
from specdistill.models import ModelPair, load
from specdistill.models.checkpoint import save_draft
from specdistill.models.head_draft import HeadModel, load_head_model


def finish(
    trainer: DraftTrainer,
    pair: ModelPair,
    prompts: RunPrompts,
    built: Built,
    parallel: ParallelStart | None,
    settings: Mapping[str, Any],
    ranks: Ranks,
    *,
    learning_rate: float,
    interrupted: bool,
) -> TrainSummary:
    """Writes the files that describe a run that has ended, however it ended.

    Args:
        trainer: After training; it has evaluated the start at least.
        pair: Target and trained draft.
        prompts: The run's prompts.
        built: What was counted of the answers that it trained on.
        parallel: How the draft guesses several tokens in one pass; None for an ordinary draft.
        settings: Flat settings of the run, with the divergence that was minimised.
        ranks: The main one writes.
        learning_rate: Peak.
        interrupted: Whether Ctrl-C ended it; the trainer has a draft to write then.
    """
    measures, keeper, state = trainer.measures, trainer.keeper, trainer.state
    start, kept, output = keeper.records["start"], keeper.kept, Path(settings["output"])
    if state.kept_step == 0 and not trainer.unmeasured and ranks.is_main:
        _write_start(pair, settings["draft"], output)
    summary = TrainSummary(
        output=str(output),
        steps=state.step,
        kept_step=state.step if trainer.unmeasured else state.kept_step,
        best_step=state.best_step,
        keep=settings["keep"],
        watched=measures.label(measures.watched),
        why=_why(trainer),
        preset=settings["preset"],
        verdict=None if interrupted else _verdict(trainer, settings["preset"]),
        disagreement=None if interrupted else keeper.disagreement(state),
        interrupted=interrupted,
        learning_rate=learning_rate,
        heldout_prompts=len(prompts.heldout),
        training_prompts=len(prompts.training),
        processes=ranks.world,
        measure=measures.measure,
        caveat=measures.caveat,
        scorer=None if prompts.scorer is None else settings["scorer"],
        before=measures.means(start),
        after={} if trainer.unmeasured else measures.means(kept),
        gain={} if trainer.unmeasured else measures.gains(kept, start),
        answers_cut=built.answers.cut,
        answers_empty=built.answers.empty,
        right_answers=built.right,
        rule="greedy" if settings["temperature"] == 0 else settings["rule"],
    )
    summary = _with_guesses(summary, parallel)
    if ranks.is_main:
        atomic.write_text(output / run_settings.CARD_FILE, model_card(settings, pair, summary))
    return summary


def _write_start(pair: ModelPair, name: str, output: Path) -> None:
    """Writes the draft as it was before training: the output must be a draft all the same, and an honest one."""
    device = str(pair.draft.device)
    if isinstance(pair.draft, HeadModel):
        source = load.ModelSource(name, name, pair.draft.config, pair.draft.tokenizer)
        start = load_head_model(source, "draft", pair.target, device, torch.float32)
    else:
        start = load.load_model(name, "draft", device=device, dtype=torch.float32)
    save_draft(start, pair.target if pair.same_tokenizer else pair.draft, output)


def _with_guesses(summary: TrainSummary, parallel: ParallelStart | None) -> TrainSummary:
    """The summary with the tokens that the draft guesses in one pass, and with warnings where that is not learned.

    Args:
        summary: Of the run.
        parallel: How the draft was made to guess several tokens; None for an ordinary draft.
    """
    if parallel is None:
        return summary
    wanted = parallel.drafting.trained_tokens or 1
    if not summary.after:
        unlearned = "nobody has measured whether the guesses behind mask tokens are learned; --resume goes on"
        return replace(summary, tokens_per_pass=wanted, unlearned=unlearned)
    if summary.kept_step:
        forgotten = forgotten_skill(summary.before, summary.after, summary.gain[ONE_BY_ONE])
        unlearned = unlearned_guesses(summary.after)
        return replace(summary, tokens_per_pass=wanted, unlearned=unlearned, forgotten=forgotten)
    if parallel.before is not None:
        return replace(summary, tokens_per_pass=parallel.before.trained_tokens or wanted)
    unlearned = (
        f"no draft of the run had better held-out {summary.watched} than its start: what is written is the ordinary "
        "draft that it began with, which guesses one token per pass (its acceptance by depth is read behind masks that "
        "it never learned); train longer (--steps)"
    )
    return replace(summary, unlearned=unlearned)


def _why(trainer: DraftTrainer) -> str:
    """Why the draft that is written is kept, in words."""
    if trainer.idle is not None:
        return "the start; nothing was trained"
    if trainer.unmeasured:
        return "the last one before the interruption, which was not measured"
    return trainer.keeper.why(trainer.state)


def _verdict(trainer: DraftTrainer, preset: str) -> str | None:
    """Gain of a run with a preset, or why it trained nothing, in a sentence; None without either."""
    measures, records = trainer.measures, trainer.keeper.records
    if trainer.idle is not None or preset == "none":
        return trainer.idle
    watched, kept = measures.watched, trainer.keeper.kept
    return gain_sentence(
        measures.watched_estimate(records["start"]),
        measures.means(kept)[watched],
        measures.gains(kept, records["start"])[watched],
        measures.label(watched),
        trainer.state.step,
        low_is_good=measures.low_is_good,
    )
