"""The drafts of --compare: found before any weights are read, then loaded, scored and timed one after another."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import torch

from specdistill.data.batch import Example
from specdistill.decoding.answers import write_answers
from specdistill.decoding.costs import DraftCosts, measure_costs
from specdistill.decoding.proof import pack_proven, prove
from specdistill.decoding.step_choice import capture_steps
from specdistill.evaluation import acceptance
from specdistill.evaluation.acceptance import HiddenCache
from specdistill.evaluation.answer_scores import AnswerJudge
from specdistill.evaluation.config import MeasureConfig
from specdistill.evaluation.interruption import Interruption
from specdistill.evaluation.leaderboard import ComparedDraft
from specdistill.evaluation.measured import Models
from specdistill.evaluation.sections import model_facts
from specdistill.models import LanguageModel, load, quantised, vocabulary
from specdistill.models.head_draft import HeadModel, find_draft
from specdistill.models.pair import fit, load_draft
from specdistill.progress import Progress

ROLE = "compare"


def find_compared(config: MeasureConfig, target: load.ModelSource, progress: Progress) -> list[load.ModelSource]:
    """Finds the drafts of --compare, and checks that they can be loaded beside the target; reads no weights.

    Raises:
        ModelError: One can't be found or loaded.
        IncompatibleModelsError: Its tokenizer is not the target's.
    """
    sources = []
    for name in config.compare:
        source = find_draft(name, ROLE, target, progress.say)
        rows = target.rows, source.rows
        vocabulary.check_same_vocabulary(target.tokenizer, source.tokenizer, target.name, name, *rows)
        load.check_loadable(source, ROLE)
        if config.weights.pack != "none":
            quantised.check_repackable(source.config, source.name, config.weights.pack)
        sources.append(source)
    return sources


def score_compared(
    sources: Sequence[load.ModelSource],
    config: MeasureConfig,
    models: Models,
    answers: Sequence[Example],
    states: HiddenCache,
    encoded: list[list[int]],
    context: int | None,
    judge: AnswerJudge | None,
    progress: Progress,
    stop: Interruption,
) -> list[ComparedDraft]:
    """Scores the drafts on the target's answers, one in memory at a time.

    What was measured is never lost by a draft that fails: its failure is said, and it is left out.

    Args:
        sources: Result of `find_compared`.
        config: Sampling, batch size, weights.
        models: The target's device and number format are the drafts' too.
        answers: The target's answers that --draft was scored on.
        states: The target's hidden states, which are computed once for all drafts.
        encoded: The prompts, which the first draft answers alone with --scorer.
        context: Tokens before a timed step; None times none.
        judge: Scores those answers.
        progress: Where bars go.
        stop: Ctrl-C; a draft that it cuts off is left out.
    """
    scored: list[ComparedDraft] = []
    for source in sources:
        if stop:
            break
        stop.where = f"{ROLE} {source.name}"
        with stop.optional(stop.where):
            asked = judge if source is sources[0] else None
            scored.append(_score(source, config, models, answers, states, encoded, context, asked, progress))
        gc.collect()
        if models.target.device.type == "cuda":
            torch.cuda.empty_cache()
    return scored


def _score(
    source: load.ModelSource,
    config: MeasureConfig,
    models: Models,
    answers: Sequence[Example],
    states: HiddenCache,
    encoded: list[list[int]],
    context: int | None,
    judge: AnswerJudge | None,
    progress: Progress,
) -> ComparedDraft:
    target, sampling = models.target, config.sampling
    draft = load_draft(source, ROLE, target, str(target.device), target.model.dtype)
    fit(draft, target.vocab_size)
    draft.one_by_one = not config.in_one_pass
    if config.weights.pack != "none" and not isinstance(draft, HeadModel):
        pack_proven([draft], config.weights.pack)
    if models.steps is not None and not any(isinstance(each, HeadModel) for each in (draft, models.draft)):
        # As --draft's are. With a head as --draft the target's steps are eager too.
        capture_steps(draft, batch_size=config.timing.batch_size)
    with progress.task(f"scoring {draft.name}", len(answers), "answers") as task:
        records = acceptance.score(
            target,
            draft,
            answers,
            sampling,
            depths=config.acceptance.max_draft_tokens,
            target_cache=states,
            on_sequences=task.advance,
        )
    own = None
    if judge is not None and not isinstance(draft, HeadModel):
        length, seed, title = config.max_new_tokens, config.timing.seed, "compared draft writes answers"
        written = write_answers(draft, judge.prompts, encoded, sampling, length, seed, progress, title)
        own = judge.examples(written, draft)
    return ComparedDraft(model_facts(draft), records, _costs(config, models, draft, context), own)


def _costs(config: MeasureConfig, models: Models, draft: LanguageModel, context: int | None) -> DraftCosts | None:
    """The draft's costs in plain target steps; None where they can't be timed here."""
    if context is None or not all(prove(model).decodes for model in (models.target, draft)):
        return None
    costs = measure_costs(
        models.target,
        draft,
        batch_size=config.timing.batch_size,
        max_draft_tokens=0 if not draft.guesses_by_start else config.acceptance.max_draft_tokens,
        context=context,
        guidance=models.guidance,
        checks=False,
    )
    return costs.drafting
