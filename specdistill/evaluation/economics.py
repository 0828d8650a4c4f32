"""When does a draft pay: the arithmetic of speculative decoding with measured costs.

One round costs gamma draft steps and one target pass over gamma + 1 tokens, and emits tau tokens. With every time in
units of a plain target step, the speed-up is tau / (gamma c + v(gamma + 1)): c = `cost_ratio`, v = `verify_cost`.
Source: Leviathan et al. 2023 (arXiv 2211.17192), Theorem 3.8, with v = 1 replaced by what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from specdistill.decoding.costs import Costs


def speedup(tau: float, num_draft_tokens: int, cost_ratio: float, verify_cost: float) -> float:
    """Predicted ratio of plain to speculative time per token."""
    return tau / (num_draft_tokens * cost_ratio + verify_cost)


def mean_acceptance_length_iid(alpha: float, num_draft_tokens: int) -> float:
    """tau if each token were accepted independently with probability alpha: 1 + alpha + ... + alpha^gamma."""
    return sum(alpha**power for power in range(num_draft_tokens + 1))


def break_even_alpha(num_draft_tokens: int, cost_ratio: float, verify_cost: float) -> float | None:
    """The alpha at which the speed-up is exactly 1 (independent acceptance); None where even alpha = 1 is too slow."""
    cost = num_draft_tokens * cost_ratio + verify_cost
    if cost > num_draft_tokens + 1:
        return None
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if mean_acceptance_length_iid(middle, num_draft_tokens) < cost:
            low = middle
        else:
            high = middle
    return high


@dataclass(frozen=True)
class Economics:
    """What a draft is worth, and the sentence that says so."""

    cost_ratio: float
    verify_cost: dict[int, float]
    break_even_alpha: float | None
    """At `num_draft_tokens`; None where even a perfect draft would be slower than none."""
    best_num_draft_tokens: int
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
    """Draws the verdict.

    Args:
        costs: Measured; `verify_cost` must cover gamma + 1 for every gamma of `predicted_tau`.
        predicted_tau: gamma -> predicted mean acceptance length.
        num_draft_tokens: The gamma that was benched.
        alpha: Under the served rule, for the sentence.
        measured: Measured speed-up (mean, low, high) at `num_draft_tokens`.
    """
    c, v = costs.cost_ratio, costs.verify_cost
    predicted = {gamma: speedup(tau, gamma, c, v[gamma + 1]) for gamma, tau in predicted_tau.items()}
    best = max(predicted, key=lambda gamma: predicted[gamma])
    perfect = {gamma: speedup(gamma + 1, gamma, c, v[gamma + 1]) for gamma in predicted_tau}
    cap = max(perfect.values())
    drafts = _drafts(num_draft_tokens)
    check = v[num_draft_tokens + 1]
    threshold = break_even_alpha(num_draft_tokens, c, check)
    facts = f"a draft step costs {c:.2f} and checking {num_draft_tokens + 1} tokens {check:.2f} target steps"
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
    return Economics(c, dict(v), threshold, best, predicted, cap, verdict, why)


def _drafts(count: int) -> str:
    return f"{count} draft token" + ("" if count == 1 else "s")
