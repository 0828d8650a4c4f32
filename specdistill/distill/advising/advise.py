"""Advice before any draft is made: counts on the target's answers, times of this machine, results of other targets."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from specdistill.data.prompt_checks import warn_about_prompts
from specdistill.data.prompts import Prompt, encode_all, spread_over_categories
from specdistill.decoding.costs import measure_costs, passes_timed, windows_of
from specdistill.decoding.proof import prove
from specdistill.distill.advising.answers import check_directory, check_given, find_answers
from specdistill.distill.advising.config import AdviseConfig
from specdistill.distill.advising.found import Found
from specdistill.distill.advising.shapes import Shape, check_layers, shapes_of
from specdistill.distill.advising.speeds import step_speeds
from specdistill.distill.cutting.kept_ids import most_used_ids
from specdistill.errors import SHORTER_TEXTS, SpecdistillError, out_of_memory_named, smaller_batch
from specdistill.evaluation.advice import Advice
from specdistill.evaluation.advice_known import Timed
from specdistill.evaluation.advice_options import timed_kind
from specdistill.evaluation.answer_kind import answer_kind
from specdistill.evaluation.interruption import Interruption
from specdistill.evaluation.measure import timed_context
from specdistill.evaluation.report import Partial
from specdistill.evaluation.scored_prompts import scored_prompts
from specdistill.models import LanguageModel, load
from specdistill.models.experts import expert_layers
from specdistill.models.pair import resolve_device, resolve_dtype
from specdistill.progress import Progress, Quiet
from specdistill.settings.self_prompts import self_source

Keep = Callable[[Advice], None]
"""Called with the advice so far, after each part."""


class AdviceInterruptedError(KeyboardInterrupt):
    """Ctrl-C after the answers were there; `advice` has what was found."""

    def __init__(self, advice: Advice) -> None:
        super().__init__("the advice was interrupted")
        self.advice = advice


class AdviceFailedError(SpecdistillError):
    """A part failed after the answers were there; `advice` has the rest."""

    def __init__(self, advice: Advice, partial: Partial) -> None:
        super().__init__(f"{partial.why}; the rest of the advice stands")
        self.advice = advice


def advise(config: AdviseConfig, progress: Progress | None = None, keep: Keep | None = None) -> Advice:
    """Compares what could be served with a target, before any draft is trained.

    Args:
        config: Target, prompts and settings.
        progress: Where bars and remarks go.
        keep: Called with the advice so far, marked as partial.

    Returns:
        The advice.

    Raises:
        SpecdistillError: Bad input; nothing was found then.
        AdviceFailedError: A part failed, memory ended say; it has the rest.
        AdviceInterruptedError: After Ctrl-C, with what was found.
        KeyboardInterrupt: After Ctrl-C before two prompts were answered, or after a second one.
    """
    progress = progress or Quiet()
    resolve_device(config.machine.device)
    load.check_exists(config.target, "target", config.adapter.target_base)
    check_directory(config)
    config.machine.limit_threads()
    prompts, there_are = _prompts(config, progress)
    check_given(config, prompts)
    source = load.find(config.target, "target", progress.say, config.adapter.target_base)
    check_layers(config.drafts, source.config)
    load.check_loadable(source, "target")
    # Prompts are checked before any weights are read.
    room = source.max_context - config.max_new_tokens
    encoded = encode_all(prompts, source.tokenizer, room, source.vocab_size)
    context = timed_context(config.as_bench, encoded, room)
    target = _load(config, source)
    warn_about_prompts(prompts, encoded, target, progress.say)
    stop = Interruption(progress.say, smaller_batch(config.timing.batch_size))
    with out_of_memory_named(SHORTER_TEXTS):
        answers = find_answers(config, target, prompts, encoded, progress, stop)
        stop.check(len(answers.examples))
        kind = answer_kind(target, answers.examples, progress)
        shapes, left_out = shapes_of(config.drafts, target.config, target.vocab_size)
        found = Found(config, target, answers, there_are, context, kind, left_out)
        if 0 < config.drafts.vocab_keep < target.vocab_size:
            count = config.drafts.vocab_keep
            found.ids, found.covered = most_used_ids(target, answers.examples, count, progress)
    kept = _Kept(keep, found, stop, len(prompts))
    kept("the answers")
    for shape in shapes if prove(target).decodes else ():
        if not stop:
            stop.where = shape.name
            with stop.optional(shape.name):
                _time(shape, found, progress, stop)
            gc.collect()
            if target.device.type == "cuda":
                torch.cuda.empty_cache()
            kept(shape.name)
    return _finished(found.advice(), stop, len(prompts))


def _load(config: AdviseConfig, source: load.ModelSource) -> LanguageModel:
    device = resolve_device(config.machine.device)
    target = load.load_model(source, "target", device=device, dtype=resolve_dtype(config.timing.dtype, device))
    target.model.requires_grad_(False)
    return target


def _prompts(config: AdviseConfig, progress: Progress) -> tuple[list[Prompt], int]:
    """The prompts whose answers are looked at, and how many there are in all."""
    own = self_source(config.prompts, "heldout")
    if own is not None:
        return scored_prompts(config.as_bench, progress), own.count
    every = scored_prompts(config.as_bench.replace(num_prompts=0), progress)
    return spread_over_categories(every, config.num_prompts), len(every)


def _time(shape: Shape, found: Found, progress: Progress, stop: Interruption) -> None:
    """Times a draft's steps, then a step of its training."""
    config, longest, checked = found.config, found.config.served.max_draft_tokens, found.costs
    draft = shape.make(found.target, found.ids)
    # Only the steps of a mixture of experts depend on the tokens.
    windows = windows_of(found.examples, longest + 1) if expert_layers(found.target) else []
    repeats = 15 if windows else 7
    with progress.task(f"timing {shape.name}", passes_timed(draft, longest, repeats), "passes") as task:
        costs = measure_costs(
            found.target,
            draft,
            batch_size=config.timing.batch_size,
            max_draft_tokens=longest,
            context=found.context,
            repeats=repeats,
            on_pass=task.advance,
            windows=windows,
            # Checks are the target's alone, so that they are timed once.
            checks=checked is None,
        )
    costs = costs if checked is None else replace(costs, verify_cost=checked.verify_cost)
    found.timed[shape.name] = Timed(timed_kind(shape.kind, shape.layers, draft, costs, longest), costs)
    where = f"the training speed of {shape.name}"
    stop.where = where
    with stop.optional(where):
        speeds = step_speeds(found.target, draft, found.examples, config.drafts.unroll)
        kind = replace(found.timed[shape.name].kind, training_tokens_per_second=speeds.trains)
        found.timed[shape.name] = Timed(kind, costs, found.pace(shape, speeds))
        found.reads = speeds.reads if found.reads is None else found.reads


@dataclass(frozen=True)
class _Kept:
    """Hands on the advice so far, marked as unfinished, so that even a kill leaves what was found."""

    keep: Keep | None
    found: Found
    stop: Interruption
    asked: int

    def __call__(self, where: str) -> None:
        if self.keep is None or self.stop:
            return
        why = f"the advice was still being made when this was written, after {where}; if it is no more, it was killed"
        done = Partial(prompts_done=len(self.found.examples), prompts_asked=self.asked, why=why, where=where)
        self.keep(replace(self.found.advice(), partial=done))


def _finished(advice: Advice, stop: Interruption, asked: int) -> Advice:
    """The advice; raised where something is missing."""
    partial = stop.partial(advice.counted.answers, asked)
    if partial is None:
        return advice
    advice = replace(advice, partial=partial)
    if isinstance(stop.error, KeyboardInterrupt):
        raise AdviceInterruptedError(advice)
    raise AdviceFailedError(advice, partial) from stop.error
