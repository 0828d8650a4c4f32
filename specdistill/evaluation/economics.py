"""When does a draft pay: the arithmetic of speculative decoding with measured costs.

One round costs gamma draft steps and one target pass over gamma + 1 tokens, and emits tau tokens. With every time in
units of a plain target step, the speed-up is tau / (gamma c + v(gamma + 1)): c = `cost_ratio`, v = `verify_cost`.
Source: Leviathan et al. 2023 (arXiv 2211.17192), Theorem 3.8, with v = 1 replaced by what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from specdistill.decoding.costs import Costs


def speedup(tau: float, num_draft_tokens: int, cost_ratio: float, verify_cost: float) -> float:
    """Predicted ratio of plain to speculative time per token."""
    return tau / (num_draft_tokens * cost_ratio + verify_cost)


def mean_acceptance_length_iid(alpha: float, num_draft_tokens: int) -> float:
    """tau if each token were accepted independently with probability alpha: 1 + alpha + ... + alpha^gamma."""
    return sum(alpha**power for power in range(num_draft_tokens + 1))


def break_even_alpha(num_draft_tokens: int, round_cost: float) -> float | None:
    """The alpha at which the speed-up is exactly 1 (independent acceptance); None where even alpha = 1 is too slow.

    Args:
        num_draft_tokens: gamma.
        round_cost: Of gamma draft steps and their check, in target steps.
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


@dataclass(frozen=True)
class Economics:
    """What a draft is worth, and the sentence that says so."""

    cost_ratio: float | None
    """None for an engine that is timed from outside, where only whole rounds can be seen."""
    verify_cost: dict[int, float]
    """Empty for such an engine."""
    round_cost: dict[int, float]
    """gamma -> gamma draft steps and their check, in target steps."""
    break_even_alpha: float | None
    """At `num_draft_tokens`; None where even a perfect draft would be slower than none."""
    best_num_draft_tokens: int
    """Of the draft lengths whose cost is known."""
    predicted_speedup: dict[int, float]
    """gamma -> speed-up from the predicted tau of that gamma."""
    perfect_draft_speedup: float
    """The best speed-up over gamma if every token were accepted."""
    verdict: str
    """`pays`, `does not pay` or `cannot pay`."""
    why: str


def judge(
    costs: Costs,
    predicted_tau: Mapping[int, float],
    num_draft_tokens: int,
    alpha: float,
    measured: tuple[float, float, float],
) -> Economics:
    """Draws the verdict from the costs of single steps.

    Args:
        costs: Measured; `verify_cost` must cover gamma + 1 for every gamma of `predicted_tau`.
        predicted_tau: gamma -> predicted mean acceptance length.
        num_draft_tokens: The gamma that was benched.
        alpha: Under the served rule, for the sentence.
        measured: Measured speed-up (mean, low, high) at `num_draft_tokens`.
    """
    c, v = costs.cost_ratio, costs.verify_cost
    round_cost = {gamma: gamma * c + v[gamma + 1] for gamma in predicted_tau}
    check = v[num_draft_tokens + 1]
    facts = f"a draft step costs {c:.2f} and checking {num_draft_tokens + 1} tokens {check:.2f} target steps"
    found = judge_rounds(round_cost, predicted_tau, num_draft_tokens, alpha, measured, facts)
    return replace(found, cost_ratio=c, verify_cost=dict(v))


def judge_rounds(
    round_cost: Mapping[int, float],
    predicted_tau: Mapping[int, float],
    num_draft_tokens: int,
    alpha: float,
    measured: tuple[float, float, float],
    facts: str,
) -> Economics:
    """Draws the verdict from the costs of whole rounds.

    Args:
        round_cost: gamma -> gamma draft steps and their check, in target steps.
        predicted_tau: gamma -> predicted mean acceptance length, at least for the gammas of `round_cost`; NaN where
            nothing could be predicted.
        num_draft_tokens: The gamma that was benched.
        alpha: Under the served rule, for the sentence.
        measured: Measured speed-up (mean, low, high) at `num_draft_tokens`.
        facts: The costs in words.
    """
    predicted = {gamma: predicted_tau[gamma] / cost for gamma, cost in round_cost.items()}
    best = max(predicted, key=lambda gamma: predicted[gamma])
    cap = max((gamma + 1) / cost for gamma, cost in round_cost.items())
    drafts = _drafts(num_draft_tokens)
    threshold = break_even_alpha(num_draft_tokens, round_cost[num_draft_tokens])
    needs = "no alpha pays" if threshold is None else f"it needs alpha {threshold:.2f} and has {alpha:.2f}"
    if cap <= 1:
        verdict = "cannot pay"
        why = f"even if every token were accepted the best speed-up would be {cap:.2f}x: {facts}"
    elif measured[1] > 1:
        verdict = "pays"
        why = (
            f"measured {measured[0]:.2f}x [{measured[1]:.2f}, {measured[2]:.2f}] with {drafts}: "
            f"{facts}; {needs} (a perfect draft would give {cap:.2f}x)"
        )
    else:
        verdict = "does not pay"
        got = f"measured {measured[0]:.2f}x [{measured[1]:.2f}, {measured[2]:.2f}]"
        why = f"{got} with {drafts}: {facts}; {needs} (a perfect draft would give {cap:.2f}x)"
        if best != num_draft_tokens and predicted[best] > 1:
            why += f"; with {_drafts(best)} {predicted[best]:.2f}x is predicted: bench --num-draft-tokens {best}"
    return Economics(None, {}, dict(round_cost), threshold, best, predicted, cap, verdict, why)


def _drafts(count: int) -> str:
    return f"{count} draft token" + ("" if count == 1 else "s")
