"""The report's sections, computed from scores and timed runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import transformers

from specdistill.data.prompts import Prompt
from specdistill.decoding import Generation
from specdistill.evaluation.acceptance import ALPHA_RULES, PromptAcceptance, alpha_sums, predicted_tau
from specdistill.evaluation.config import MeasureConfig
from specdistill.evaluation.latency import TimedRun, speedup_of, time_and_tokens
from specdistill.evaluation.report import Comparison, Difference, GreedyDifference, Latency, Lossless, Speed
from specdistill.evaluation.report_acceptance import CategoryScores, CountedAcceptance, ScoredAcceptance
from specdistill.evaluation.report_setup import HEAD, PARALLEL, ModelFacts, Setup
from specdistill.evaluation.statistics import Estimate, paired_difference, ratio
from specdistill.models import LanguageModel
from specdistill.models.head_draft import HeadModel


def model_facts(model: LanguageModel) -> ModelFacts:
    """`target` and `draft` of the report."""
    return ModelFacts(
        name=model.name,
        parameters=model.num_parameters,
        vocab_size=model.vocab_size,
        dtype=str(model.model.dtype).removeprefix("torch."),
        adapter_of=None if model.adapter is None else model.adapter.base,
        head_size=None if model.kept_ids is None else len(model.kept_ids),
        mask_id=None if model.parallel is None else model.parallel.mask_id,
        parallel_draft_tokens=None if model.parallel is None else model.parallel.trained_tokens,
        kind=_kind(model),
    )


def _kind(model: LanguageModel) -> str | None:
    if isinstance(model, HeadModel):
        return HEAD
    return None if model.parallel is None else PARALLEL


def setup_section(
    config: MeasureConfig,
    *,
    engine: str,
    device: str,
    lossy: bool,
    num_draft_tokens: int,
    prompts: int,
    latency_prompts: int,
) -> Setup:
    """The part of `setup` that our decoder and real engines share.

    Args:
        config: The whole configuration, to be recorded.
        engine: Value of --engine.
        device: Device, as the report names it.
        lossy: Whether rule or weights give up the target's distribution.
        num_draft_tokens: Draft length of the timed run.
        prompts: Prompts scored.
        latency_prompts: Prompts timed.
    """
    sampling = config.sampling
    return Setup(
        device=device,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        engine=engine,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        batch_size=config.timing.batch_size,
        max_new_tokens=config.max_new_tokens,
        seed=config.timing.seed,
        rule=config.served_rule,
        predicting_rule=config.predicting_rule,
        lossy=lossy,
        num_draft_tokens=num_draft_tokens,
        prompts=prompts,
        latency_prompts=latency_prompts,
        prompt_source=config.prompts,
        chat_template_kwargs=config.chat.chat_template_kwargs,
        raw_prompts=config.chat.raw_prompts or None,
        one_by_one=config.acceptance.one_by_one or None,
        guidance=config.guided.guidance or None,
        negative_prompt=config.guided.negative_prompt,
    )


def counted_section(runs: Sequence[TimedRun], num_draft_tokens: int) -> CountedAcceptance:
    """Acceptance as our decoder counted it in the timed runs."""
    generations = [generation for run in runs for generation in run.speculative]
    joint, conditional = by_position(generations, num_draft_tokens)

    def sums(name: str) -> np.ndarray:
        return np.array([sum(getattr(entry, name) for entry in g.rounds) for g in generations], dtype=float)

    calls = np.array([len(generation.rounds) for generation in generations], dtype=float)
    return counted(joint, conditional, sums("emitted"), calls, sums("accepted"), sums("proposed"))


def counted(
    by_position: list[float],
    by_position_conditional: list[float],
    emitted: np.ndarray,
    calls: np.ndarray,
    accepted: np.ndarray,
    proposed: np.ndarray,
) -> CountedAcceptance:
    """Turns counts into the report's rates.

    Args:
        by_position, by_position_conditional: Rates of the positions, where they are known.
        emitted: Tokens that verifications put out, float64, one value per prompt (or per batch that shares a counter).
        calls: Verifications, likewise.
        accepted, proposed: Draft tokens, likewise.
    """
    per_prompt = emitted[calls > 0] / calls[calls > 0]
    return CountedAcceptance(
        by_position=by_position,
        by_position_conditional=by_position_conditional,
        mean_acceptance_length=ratio(emitted, calls),
        mean_acceptance_length_macro=float(per_prompt.mean()) if len(per_prompt) else float("nan"),
        acceptance_rate=ratio(accepted, proposed),
    )


def scored_section(
    prompts: Sequence[Prompt],
    records: Sequence[PromptAcceptance],
    rule: str,
    num_draft_tokens: int,
    predicted: dict[int, float],
) -> ScoredAcceptance:
    """Acceptance as one pass over the target's answers predicts it: alphas, predictions, categories.

    Args:
        prompts: The prompts that were scored.
        records: One per prompt, in the same order.
        rule: The rule that predictions are made for.
        num_draft_tokens: Draft length of the timed run.
        predicted: Draft length -> predicted tokens per target call.
    """
    categories: dict[str, CategoryScores] = {}
    for name in dict.fromkeys(prompt.category for prompt in prompts):
        subset = [record for prompt, record in zip(prompts, records, strict=True) if prompt.category == name]
        served = ratio(*alpha_sums(subset, rule))
        categories[name] = CategoryScores(
            **{f"alpha_{known}": ratio(*alpha_sums(subset, known)).mean for known in subset[0].alpha},
            # Predicted from one pass over each answer, so that categories outside the timed prompts have it too.
            mean_acceptance_length=ratio(*predicted_tau(subset, rule, num_draft_tokens)).mean,
            prompts=len(subset),
            alpha_ci95=(served.low, served.high),
            tokens=sum(record.num_tokens for record in subset),
        )
    return ScoredAcceptance(
        tokens_scored=int(sum(record.num_tokens for record in records)),
        alpha=alphas(records),
        alpha_at_temperature_1=alphas_at_1(records),
        alpha_by_depth=alphas_by_depth(records),
        predicted_mean_acceptance_length=predicted,
        by_category=categories,
    )


def alphas(records: Sequence[PromptAcceptance]) -> dict[str, Estimate]:
    """Rule -> mean alpha over all tokens."""
    return {rule: ratio(*alpha_sums(records, rule)) for rule in records[0].alpha}


def alphas_by_depth(records: Sequence[PromptAcceptance]) -> dict[str, list[float]] | None:
    """Rule -> mean alpha of the first, second, ... token of a round, over all places where a round could start.

    None for drafts whose guess of a token does not depend on the round.
    """
    found = {}
    for rule in records[0].alpha_by_depth:
        table = np.concatenate([record.alpha_by_depth[rule] for record in records])
        known = table[:, ~np.isnan(table).all(0)]
        found[rule] = np.nanmean(known, axis=0).tolist()
    return found or None


def alphas_at_1(records: Sequence[PromptAcceptance]) -> dict[str, Estimate] | None:
    """The rules that sample, at temperature 1; None where `alpha` itself compares distributions."""
    return {rule: ratio(*alpha_sums(records, rule, at_1=True)) for rule in records[0].alpha_at_1} or None


def by_position(generations: Sequence[Generation], num_draft_tokens: int) -> tuple[list[float], list[float]]:
    """Joint survival S_i and P(accept i | 1..i-1 accepted), over the rounds in which position i was proposed.

    NaN where no round came that far.
    """
    rounds = [entry for generation in generations for entry in generation.rounds]
    joint, conditional = [], []
    for position in range(1, num_draft_tokens + 1):
        proposed = [entry for entry in rounds if entry.proposed >= position]
        reached = [entry for entry in proposed if entry.accepted >= position - 1]
        kept = sum(entry.accepted >= position for entry in proposed)
        joint.append(kept / len(proposed) if proposed else math.nan)
        conditional.append(kept / len(reached) if reached else math.nan)
    return joint, conditional


def latency_section(runs: Sequence[TimedRun]) -> Latency:
    """`latency` of the report: both speeds, and the speed-up in tokens/s, paired by prompt (or by batch)."""
    plain, speculative = [run.plain for run in runs], [run.speculative for run in runs]
    # Nothing is known of the inside of an engine that is watched from outside.
    inside = sum(batch[0].model_seconds for batch in speculative) or float("nan")
    return Latency(
        baseline=_speed(plain),
        speculative=_speed(speculative),
        speedup=speedup_of(plain, speculative),
        engine_efficiency=inside / sum(batch[0].seconds for batch in speculative),
    )


def lossless_section(lossy: bool, differences: Sequence[GreedyDifference | None]) -> Lossless:
    """`lossless` of the report, from one entry per compared prompt: None where the outputs are equal."""
    return Lossless(
        checked=not lossy,
        lossy=lossy,
        greedy_identical=not lossy and not any(differences),
        prompts_compared=len(differences),
        differences=[difference for difference in differences if difference],
    )


def compare_section(
    other: ModelFacts,
    records: Sequence[PromptAcceptance],
    other_records: Sequence[PromptAcceptance],
    rule: str,
    num_draft_tokens: int,
) -> Comparison:
    """`compare` of the report: the other draft's alphas, and draft minus other, paired by prompt."""
    return Comparison(
        draft=other,
        alpha=alphas(other_records),
        alpha_at_temperature_1=alphas_at_1(other_records),
        predicted_mean_acceptance_length=ratio(*predicted_tau(other_records, rule, num_draft_tokens)),
        difference=difference(records, other_records, rule, num_draft_tokens),
    )


def difference(
    records: Sequence[PromptAcceptance], other: Sequence[PromptAcceptance], rule: str, num_draft_tokens: int
) -> Difference:
    """Scores minus other scores of the same prompts, by rule and in predicted tokens per target call."""

    def alpha(name: str, at_1: bool = False) -> Estimate:
        return paired_difference(alpha_sums(records, name, at_1=at_1), alpha_sums(other, name, at_1=at_1))

    ours, theirs = predicted_tau(records, rule, num_draft_tokens), predicted_tau(other, rule, num_draft_tokens)
    return Difference(
        **{name: alpha(name) for name in ALPHA_RULES},
        at_temperature_1={name: alpha(name, at_1=True) for name in records[0].alpha_at_1} or None,
        predicted_mean_acceptance_length=paired_difference(ours, theirs),
    )


def _speed(batches: Sequence[list[Generation]]) -> Speed:
    seconds, tokens = time_and_tokens(batches)
    first = np.array([g.first_token_seconds for batch in batches for g in batch])
    # Per row: the time one user waits between two tokens after the first.
    following = sum(max(len(g.token_ids) for g in batch) - 1 for batch in batches)
    after = sum(batch[0].seconds - batch[0].first_token_seconds for batch in batches)
    return Speed(
        tokens_per_second=float(tokens.sum() / seconds.sum()),
        time_to_first_token=float(first.mean()),
        time_per_output_token=float(after / following) if following else float("nan"),
    )
