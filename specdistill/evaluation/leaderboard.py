"""One leaderboard over all drafts of a bench: agreement, costs, predicted speed-up, and differences to --draft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from specdistill.decoding.costs import Costs, DraftCosts
from specdistill.evaluation.acceptance import PromptAcceptance, alpha_sums, predicted_tau
from specdistill.evaluation.report_leaderboard import LeaderboardRow
from specdistill.evaluation.report_setup import PARALLEL, ModelFacts
from specdistill.evaluation.statistics import paired_difference, ratio


@dataclass(frozen=True)
class ComparedDraft:
    """A draft that was scored and timed beside others."""

    facts: ModelFacts
    records: list[PromptAcceptance]
    """Its scores of the target's answers."""
    costs: DraftCosts | None
    """In plain target steps; None where it was not timed."""
    answers: Mapping[str, float] | None = None
    """Prompt's id -> score of the answer that it wrote alone; None without --scorer."""


def leaderboard_section(
    draft: ComparedDraft,
    others: Sequence[ComparedDraft],
    costs: Costs | None,
    rule: str,
    num_draft_tokens: int,
    longest: int,
) -> list[LeaderboardRow] | None:
    """`leaderboard` of the report, the highest predicted speed-up first, then the most tokens per target
    call, then the highest alpha.

    Args:
        draft: The draft of --draft.
        others: Those of --compare, scored on the same answers.
        costs: Costs of the target's passes; None where steps were not timed.
        rule: Acceptance rule.
        num_draft_tokens: Draft length of the timed run.
        longest: Longest draft length that is predicted.

    Returns:
        None where nothing is compared.
    """
    if not others:
        return None
    rows = [_row(draft, costs, rule, num_draft_tokens, longest)]
    for other in others:
        row = _row(other, costs, rule, num_draft_tokens, longest)
        rows.append(
            replace(
                row,
                alpha_minus_draft=paired_difference(alpha_sums(other.records, rule), alpha_sums(draft.records, rule)),
                tokens_minus_draft=paired_difference(
                    predicted_tau(other.records, rule, num_draft_tokens),
                    predicted_tau(draft.records, rule, num_draft_tokens),
                ),
            )
        )
    return sorted(rows, key=_rank)


def _rank(row: LeaderboardRow) -> tuple[float, float, float]:
    """Alpha comes last: it is that of the first guess only, where a draft's guesses depend on the round."""
    return -(row.predicted_speedup or 0), -row.predicted_mean_acceptance_length.mean, -row.alpha.mean


def _row(draft: ComparedDraft, costs: Costs | None, rule: str, num_draft_tokens: int, longest: int) -> LeaderboardRow:
    speedups: dict[int, float] = {}
    tokens, step, round_cost = ratio(*predicted_tau(draft.records, rule, num_draft_tokens)), None, None
    if draft.costs is not None:
        step = None if draft.facts.kind == PARALLEL else draft.costs.step
    if costs is not None and draft.costs is not None:
        round_cost = _round_cost(draft.costs, costs, num_draft_tokens, tokens.mean)
        for length in range(1, longest + 1):
            tau = ratio(*predicted_tau(draft.records, rule, length)).mean
            speedups[length] = tau / _round_cost(draft.costs, costs, length, tau)
    best = max(speedups, key=lambda length: speedups[length]) if speedups else None
    return LeaderboardRow(
        draft=draft.facts.name,
        kind=draft.facts.kind,
        parameters=draft.facts.parameters,
        alpha=ratio(*alpha_sums(draft.records, rule)),
        predicted_mean_acceptance_length=tokens,
        cost_ratio=step,
        round_cost=round_cost,
        best_num_draft_tokens=best,
        predicted_speedup=None if best is None else speedups[best],
    )


def _round_cost(draft: DraftCosts, costs: Costs, length: int, tokens_per_call: float) -> float:
    """Time of drafting so many tokens and their check, in plain target steps."""
    return draft.of_round(length, tokens_per_call) + costs.verify_cost[length + 1]
