"""Expected rounds over an answer where runs of it are copied, and a draft may be asked elsewhere.

What is copied depends only on the text so far, so each position of an answer that the target wrote has one proposal,
and the target keeps of it what the answer goes on with: that is exact under every rule that keeps the distribution, at
any temperature. Where nothing is copied the draft may be asked instead; its tokens are kept with the probabilities of
`acceptance`. One walk over each answer therefore gives the expected rounds, and with the costs of single steps the
speed-up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from specdistill.data.batch import Example
from specdistill.decoding.costs import Costs
from specdistill.decoding.lookup import NewLookup
from specdistill.evaluation.rounds import by_start

Copies = list[tuple[int, int]]
"""At each position of an answer: tokens that are copied, and how many of them the answer goes on with."""


@dataclass(frozen=True)
class Walk:
    """Expected sums of one answer at one draft length."""

    tokens: float
    """Tokens that verifications emit."""
    rounds: float
    """Verifications."""
    proposing: float
    """Those with a proposal."""
    cost: float
    """Their time in plain target steps; NaN where one of the costs is not known."""


def walk(
    answer: Example,
    lookup: NewLookup,
    num_draft_tokens: int,
    max_new_tokens: int,
    costs: Costs | None,
    draft_chances: np.ndarray | None = None,
    *,
    first_drafted: bool = False,
) -> Walk:
    """Expected rounds over one answer.

    Args:
        answer: The target's own.
        lookup: Begins the text.
        num_draft_tokens: Most tokens of a proposal.
        max_new_tokens: The answer's limit: the decoder proposes no more than what is left minus one.
        costs: Of single steps; None leaves the cost out.
        draft_chances: Probability that each token, once the draft is asked, comes from it, as `rounds.by_start` takes
            it; None asks none.
        first_drafted: Whether the prompt's own pass verifies a proposal too.
    """
    copies = copies_of(answer, lookup, [num_draft_tokens], max_new_tokens, first_drafted)[num_draft_tokens]
    return walk_copies(copies, len(answer.answer_ids), num_draft_tokens, costs, draft_chances, first_drafted)


def walk_copies(
    copies: Copies,
    tokens: int,
    num_draft_tokens: int,
    costs: Costs | None,
    draft_chances: np.ndarray | None,
    first_drafted: bool = False,
) -> Walk:
    """Expected rounds over an answer of so many tokens; see `walk`."""
    first = 0 if first_drafted else 1
    starts = np.zeros(tokens + num_draft_tokens + 2)
    starts[first] = 1.0
    rounds = proposing = cost = 0.0
    chances = None if draft_chances is None else by_start(draft_chances, num_draft_tokens)
    drafted: dict[int, float] = {}
    for place in range(first, tokens):
        share = starts[place]
        if share == 0:
            continue
        rounds += share
        proposed, kept = copies[place - first]
        if proposed:
            proposing += share
            cost += share * _check(costs, proposed)
            starts[place + kept + 1] += share
            continue
        limit = 0 if chances is None else min(num_draft_tokens, tokens - place - 1)
        proposing += share if limit else 0.0
        cost += share * _check(costs, limit)
        drafted[limit] = drafted.get(limit, 0.0) + share
        for length in range(limit):
            chance = chances[place, length] if chances is not None else 0.0
            starts[place + length + 1] += share * (1 - chance)
            share *= chance
        starts[place + limit + 1] += share
    return Walk(float(tokens - first), rounds, proposing, cost + _drafting(costs, drafted, tokens - first))


def copies_of(
    answer: Example, new_lookup: NewLookup, lengths: Sequence[int], max_new_tokens: int, first_drafted: bool = False
) -> dict[int, Copies]:
    """Reads an answer once for several draft lengths: the text so far does not depend on them.

    Args:
        answer, max_new_tokens, first_drafted: As for `walk`.
        new_lookup: Begins the text.
        lengths: Most tokens of a proposal.

    Returns:
        Draft length -> its copies.
    """
    lookup, ids = new_lookup(), answer.answer_ids
    lookup.read(answer.prompt_ids)
    first = 0 if first_drafted else 1
    found: dict[int, Copies] = {length: [] for length in lengths}
    lookup.read(ids[:first])
    for place in range(first, len(ids)):
        for length in lengths:
            limit = min(length, max_new_tokens - place - 1)
            run = lookup.copy(limit) if limit > 0 else []
            following = ids[place : place + len(run)]
            kept = next((at for at, pair in enumerate(zip(run, following, strict=False)) if pair[0] != pair[1]), None)
            found[length].append((len(run), len(following) if kept is None else kept))
        lookup.read(ids[place : place + 1])
    return found


def _check(costs: Costs | None, proposed: int) -> float:
    if costs is None or proposed + 1 not in costs.verify_cost:
        return float("nan")
    return costs.verify_cost[proposed + 1]


def _drafting(costs: Costs | None, drafted: Mapping[int, float], tokens: int) -> float:
    """The draft's share: it reads each token once, copied ones too, whenever it is next asked."""
    asked = sum(share for length, share in drafted.items() if length)
    if costs is None or not asked:
        return 0.0
    return sum(share * costs.drafting.of_round(length, tokens / asked) for length, share in drafted.items())
