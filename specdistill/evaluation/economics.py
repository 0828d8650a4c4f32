"""Whether a draft pays: the arithmetic of speculative decoding with measured costs.

One round costs gamma draft steps and one target pass over gamma + 1 tokens, and emits tau tokens. With every time in
units of a plain target step, the speed-up is tau / (gamma c + v(gamma + 1)), with c = `cost_ratio`, v = `verify_cost`.
A parallel draft has one pass per round in place of gamma c, and a head's first pass reads what the last round kept; see
`decoding.costs`.
Source: Leviathan et al. 2023 (arXiv 2211.17192), Theorem 3.8, with v = 1 replaced by what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from specdistill.decoding.costs import Costs
from specdistill.evaluation.experts import ExpertCosts
from specdistill.evaluation.statistics import FEWEST_UNITS, Estimate


def mean_acceptance_length_iid(alpha: float, num_draft_tokens: int) -> float:
    """tau if each token were accepted independently with probability alpha: 1 + alpha + ... + alpha^gamma."""
    return sum(alpha**power for power in range(num_draft_tokens + 1))


def break_even_alpha(num_draft_tokens: int, round_cost: float) -> float | None:
    """The alpha at which the speed-up is exactly 1 (independent acceptance); None where even alpha = 1 is too slow.

    Args:
        num_draft_tokens: Draft length gamma.
        round_cost: Time of gamma draft steps and their check, in target steps.
    """
    if round_cost > num_draft_tokens + 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if mean_acceptance_length_iid(middle, num_draft_tokens) < round_cost:
            low = middle
        else:
            high = middle
    return high


def break_even_tokens(costs: Costs, num_draft_tokens: int) -> float | None:
    """The tokens per target call at which the speed-up is exactly 1; None where even all tokens accepted are too slow.

    Args:
        costs: Of single steps. A round's time grows in a straight line with the tokens that the last one kept.
        num_draft_tokens: Draft length gamma.
    """
    least = costs.round_cost(num_draft_tokens, 1.0)
    slope = (costs.round_cost(num_draft_tokens, num_draft_tokens + 1) - least) / num_draft_tokens
    tokens = (least - slope) / (1 - slope) if slope < 1 else math.inf
    return None if tokens > num_draft_tokens + 1 else max(1.0, tokens)


@dataclass(frozen=True, kw_only=True)
class Economics:
    """Costs and gains of a draft, and the sentence that says whether it pays."""

    cost_ratio: float | None
    """Time of a draft step over that of a plain target step; null for an engine that is timed from outside, where only
    whole rounds can be seen."""
    verify_cost: dict[int, float]
    """Tokens in one target pass -> its time in plain target steps; empty for such an engine."""
    round_cost: dict[int, float]
    """Draft length -> time of that many draft steps and their check, in plain target steps; with `draft_pass_cost` of
    that one pass and its check."""
    draft_pass_cost: dict[int, float] | None = None
    """Draft length -> time of the one pass in which a parallel draft guesses so many tokens, in plain target steps;
    absent for drafts that take a step per token."""
    break_even_alpha: float | None
    """The alpha at which `setup.num_draft_tokens` neither gains nor loses, if every token of a round were accepted with
    it: that of a parallel draft and of a head falls with the token's place, so that tokens per target call decide.
    Null where even a perfect draft would be slower than none."""
    best_num_draft_tokens: int
    """The length with the highest predicted speed-up, among those whose cost is known."""
    predicted_speedup: dict[int, float]
    """Draft length -> speed-up from its predicted tokens per target call and its cost."""
    perfect_draft_speedup: float
    """The best speed-up over all lengths if every draft token were accepted."""
    perfect_num_draft_tokens: int | None = None
    """The length that gives it; absent where nothing was scored or timed."""
    verdict: str
    """`pays`, `does not pay` or `cannot pay`; `undecided` where too few batches were timed for an interval, or more
    was measured than a perfect draft would give; `unknown` where decoding was not timed."""
    why: str
    """The verdict's reason in one sentence."""
    target_step_seconds: float | None = None
    """Seconds of a plain target step; absent for real engines."""
    draft_step_seconds: float | None = None
    """Seconds of a draft step; absent for real engines."""
    round_cost_ci95: tuple[float, float] | None = None
    """95 % interval of the one entry of `round_cost`, for real engines."""
    experts: ExpertCosts | None = None
    """Present where the target is a mixture of experts."""


def judge(
    costs: Costs,
    predicted_tau: Mapping[int, float],
    num_draft_tokens: int,
    alpha: float,
    measured: Estimate,
    untimed: str | None = None,
) -> Economics:
    """Draws the verdict from the costs of single steps.

    Args:
        costs: Seconds of both steps, and `verify_cost` in target steps. It must cover gamma + 1 tokens for every draft
            length gamma of `predicted_tau`.
        predicted_tau: Draft length -> predicted mean acceptance length, in tokens per target call.
        num_draft_tokens: Draft length that was timed; one of those in `predicted_tau`.
        alpha: Acceptance of one draft token under the served rule, in [0, 1]; only the sentence uses it.
        measured: Measured speed-up at `num_draft_tokens`.
        untimed: Why none was measured; None where one was.

    Returns:
        Costs, predictions and the verdict: `undecided` where the measurement has no interval or lies above what a
        perfect draft would give, `cannot pay` where even that would be no faster, `unknown` where nothing was timed,
        `pays` where the interval lies above 1, else `does not pay`.

    Raises:
        KeyError: A length is missing in `costs.verify_cost` or `predicted_tau`.
    """
    c, v = costs.cost_ratio, costs.verify_cost
    round_cost = {gamma: costs.round_cost(gamma, tau) for gamma, tau in predicted_tau.items()}
    check, passes = v[num_draft_tokens + 1], None
    drafting = f"a draft step costs {c:.2f}"
    if costs.draft_passes is not None:
        passes = {gamma: costs.drafting.of_round(gamma, tau) for gamma, tau in predicted_tau.items()}
        way = "drafting {}" if costs.by_steps else "guessing {} in one pass"
        drafting = f"{way.format(_drafts(num_draft_tokens))} costs {passes[num_draft_tokens]:.2f}"
    facts = f"{drafting} and checking {num_draft_tokens + 1} tokens {check:.2f} target steps"
    economics = judge_rounds(
        round_cost,
        predicted_tau,
        num_draft_tokens,
        alpha,
        measured,
        facts,
        by_depth=passes is not None,
        perfect_cost={gamma: costs.round_cost(gamma, gamma + 1) for gamma in predicted_tau},
    )
    if untimed is not None and economics.verdict != "cannot pay":
        speedup = f"{economics.predicted_speedup[num_draft_tokens]:.2f}x with {_drafts(num_draft_tokens)}"
        perfect = _most(economics.perfect_draft_speedup, economics.perfect_num_draft_tokens)
        why = f"predicted {speedup}, not timed, since {untimed}: {facts} ({perfect})"
        economics = replace(economics, verdict="unknown", why=why)
    return replace(
        economics,
        cost_ratio=c,
        draft_pass_cost=None if costs.by_steps else passes,
        verify_cost=dict(v),
        target_step_seconds=costs.target_step_seconds,
        draft_step_seconds=costs.draft_step_seconds,
    )


_BESIDE = "other work ran on this machine during one of the two; measure again with nothing beside it"


def judge_rounds(
    round_cost: Mapping[int, float],
    predicted_tau: Mapping[int, float],
    num_draft_tokens: int,
    alpha: float,
    measured: Estimate,
    facts: str,
    unscored: str = "the draft has another tokenizer",
    *,
    by_depth: bool = False,
    perfect_cost: Mapping[int, float] | None = None,
) -> Economics:
    """Draws the verdict from the costs of whole rounds.

    Args:
        round_cost: Draft length -> time of that many draft steps and their check, in target steps.
        predicted_tau: Draft length -> predicted mean acceptance length, at least for the lengths of `round_cost`; NaN
            where nothing could be predicted.
        num_draft_tokens: Draft length that was timed.
        alpha: Acceptance of one draft token under the served rule; NaN where it could not be scored.
        measured: Measured speed-up at `num_draft_tokens`.
        facts: The costs in words.
        unscored: Reason for an alpha of NaN.
        by_depth: Whether the draft's alpha falls with the token's place in the round, as a parallel draft's and a
            head's do, so that the sentence compares tokens per target call.
        perfect_cost: Costs of rounds in which all is accepted, where they differ; None takes `round_cost`.
    """
    is_scored = math.isfinite(alpha)
    predicted = {gamma: predicted_tau[gamma] / cost for gamma, cost in round_cost.items()}
    best = max(predicted, key=lambda gamma: predicted[gamma])
    cap, fullest = _perfect(perfect_cost or round_cost) if is_scored else (float("nan"), None)
    drafts, cost = _drafts(num_draft_tokens), round_cost[num_draft_tokens]
    threshold = break_even_alpha(num_draft_tokens, cost) if is_scored else float("nan")
    needs = _needs_tokens(cost, predicted_tau[num_draft_tokens]) if by_depth else _needs(threshold, alpha)
    known = f"{needs} ({_most(cap, fullest)})" if is_scored else f"its alpha is unknown, for {unscored}"
    why = f"{_timed(measured, drafts)}: {facts}; {known}"
    if measured.has_interval and measured.low > cap:
        verdict, why = "undecided", f"{why}; more was measured than that: {_BESIDE}"
    elif cap <= 1:
        verdict = "cannot pay"
        why = f"even if every token were accepted the best speed-up would be {cap:.2f}x{_with(fullest)}: {facts}"
    elif not measured.has_interval:
        verdict, why = "undecided", _too_few(measured, drafts)
    elif measured.low > 1:
        verdict = "pays"
    else:
        verdict = "does not pay"
        why += _remedies(measured, num_draft_tokens, best, predicted[best], predicted[num_draft_tokens])
    return Economics(
        cost_ratio=None,
        verify_cost={},
        round_cost=dict(round_cost),
        break_even_alpha=threshold,
        best_num_draft_tokens=best,
        predicted_speedup=predicted,
        perfect_draft_speedup=cap,
        perfect_num_draft_tokens=fullest,
        verdict=verdict,
        why=why,
    )


def _perfect(round_cost: Mapping[int, float]) -> tuple[float, int]:
    """The best speed-up of a draft that is always right, and its length, from the costs of rounds kept whole."""
    speedups = {gamma: (gamma + 1) / cost for gamma, cost in round_cost.items()}
    length = max(speedups, key=lambda gamma: speedups[gamma])
    return speedups[length], length


def _timed(measured: Estimate, drafts: str) -> str:
    interval = f" [{measured.low:.2f}, {measured.high:.2f}]" if measured.has_interval else ""
    return f"measured {measured.mean:.2f}x{interval} with {drafts}"


def _most(cap: float, length: int | None) -> str:
    return f"a perfect draft would give {cap:.2f}x{_with(length)}"


def _with(length: int | None) -> str:
    return "" if length is None else f" with {_drafts(length)}"


def _needs(threshold: float | None, alpha: float) -> str:
    return "no alpha pays" if threshold is None else f"it needs alpha {threshold:.2f} and has {alpha:.2f}"


def _needs_tokens(cost: float, predicted: float) -> str:
    return f"it needs {cost:.2f} tokens per target call and is predicted {predicted:.2f}"


def _too_few(measured: Estimate, drafts: str) -> str:
    return (
        f"measured {measured.mean:.2f}x with {drafts}, but an interval needs {FEWEST_UNITS} timed batches or more: "
        "raise --num-prompts and --latency-prompts, or lower --batch-size"
    )


def _remedies(measured: Estimate, num_draft_tokens: int, best: int, predicted: float, here: float) -> str:
    remedies = ""
    if here > max(1.0, measured.high):
        remedies += f"; by the costs of single steps it would be {here:.2f}x: reading the prompts counts in what is "
        remedies += "measured, and so does other work on this machine"
    if measured.high > 1:
        remedies += "; the interval spans 1, so this is too close to call: more --latency-prompts narrow it"
    if best != num_draft_tokens and predicted > 1:
        remedies += f"; with {_drafts(best)} {predicted:.2f}x is predicted: bench --num-draft-tokens {best}"
    return remedies


def _drafts(count: int) -> str:
    return f"{count} draft token" + ("" if count == 1 else "s")
