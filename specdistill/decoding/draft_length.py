"""How many tokens to draft before the target checks: a fixed number, until doubt, or whatever pays most right now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from specdistill.decoding.costs import Costs
from specdistill.errors import ConfigError


class DraftLength(Protocol):
    """Decides round by round."""

    max_tokens: int
    """Never more than this; caches are sized for it."""
    watches_confidence: bool
    """Whether `goes_on` wants to be asked; it costs a softmax per draft step."""

    def limit(self, unread: int) -> int:
        """Draft tokens of the next round at most; 0 is a plain target step.

        Args:
            unread: Tokens that the draft would have to read first, the most of any row.
        """
        ...

    def goes_on(self, confidence: float) -> bool:
        """Whether a row goes on drafting, given the product of the draft's probabilities of its tokens so far.

        It may depend on tokens already drafted and kept in the proposal, never on leaving the last one out: dropping a
        token because of its own probability would change the law it was drawn from, and verification would be biased.
        """
        ...

    def observe(self, proposed: Sequence[int], accepted: Sequence[int]) -> None:
        """What the rows of the last round proposed and kept."""
        ...


class FixedLength:
    """Always the same number."""

    watches_confidence = False

    def __init__(self, num_draft_tokens: int) -> None:
        if num_draft_tokens < 1:
            raise ConfigError(f"--num-draft-tokens must be at least 1, got {num_draft_tokens}")
        self.max_tokens = num_draft_tokens

    def limit(self, unread: int) -> int:
        return self.max_tokens

    def goes_on(self, confidence: float) -> bool:
        return True

    def observe(self, proposed: Sequence[int], accepted: Sequence[int]) -> None:
        pass


class ConfidenceLength:
    """Drafts until the product of the draft's own probabilities falls under a threshold; each row for itself."""

    watches_confidence = True

    def __init__(self, max_tokens: int, threshold: float = 0.4) -> None:
        if max_tokens < 1:
            raise ConfigError(f"--num-draft-tokens must be at least 1, got {max_tokens}")
        if not 0 < threshold < 1:
            raise ConfigError(f"--confidence must be in (0, 1), got {threshold}")
        self.max_tokens, self.threshold = max_tokens, threshold

    def limit(self, unread: int) -> int:
        return self.max_tokens

    def goes_on(self, confidence: float) -> bool:
        return confidence >= self.threshold

    def observe(self, proposed: Sequence[int], accepted: Sequence[int]) -> None:
        pass


class AutoLength:
    """The length with the highest expected tokens per second, from measured costs and the acceptance seen so far.

    Where no length beats a plain step it falls back to plain decoding, and looks again from time to time: seldom enough
    that looking costs at most `probe_share` of the time. State carries over from one `generate` to the next, so with a
    rule that samples *which* tokens come out depends on what came before; their distribution does not.

    Args:
        costs: Measured at the batch size that is served, for 1 to max_tokens + 1 tokens per target pass.
        max_tokens: Longest draft considered.
        probe_share: Largest share of time spent on drafts that are expected to lose.
    """

    watches_confidence = False
    # Acceptance drifts within a text: an observation counts half after about 70 rounds.
    _FORGET = 0.99
    # Before anything was seen: two accepted of three, so that a new draft gets its chance.
    _PRIOR = (2.0, 3.0)

    def __init__(self, costs: Costs, max_tokens: int, probe_share: float = 0.02) -> None:
        if set(costs.verify_cost) < set(range(1, max_tokens + 2)):
            covered = sorted(costs.verify_cost)
            raise ConfigError(f"costs must cover passes of 1 to {max_tokens + 1} tokens, got {covered}")
        self.max_tokens, self._costs, self._probe_share = max_tokens, costs, probe_share
        self._kept = [0.0] * max_tokens
        self._seen = [0.0] * max_tokens
        self._debt = 0.0
        """Plain steps still to make before the next look."""

    def expected_speedup(self, length: int) -> float:
        """Expected tokens per plain-step time at this draft length; 1 for a plain step."""
        tokens, reach, chance = 1.0, 1.0, self._PRIOR[0] / self._PRIOR[1]
        for position in range(length):
            prior_kept, prior_seen = self._PRIOR
            if position and self._seen[position] == 0:
                # Never reached: as likely as the position before it.
                prior_kept, prior_seen = chance, 1.0
            chance = (self._kept[position] + prior_kept) / (self._seen[position] + prior_seen)
            reach *= chance
            tokens += reach
        return tokens / (length * self._costs.cost_ratio + self._costs.verify_cost[length + 1])

    def limit(self, unread: int) -> int:
        best = max(range(1, self.max_tokens + 1), key=self.expected_speedup)
        if self.expected_speedup(best) >= 1:
            return best
        if self._debt > 0:
            self._debt -= 1
            return 0
        # One draft token is the cheapest look; it is paid for by plain steps before the next one. What the draft has
        # not read since the last look is part of the price; long passes cost less per token than the longest measured.
        widest = max(self._costs.verify_cost)
        reading = self._costs.cost_ratio * unread * self._costs.verify_cost[widest] / widest
        loss = self._costs.cost_ratio + self._costs.verify_cost[2] - 1 + reading
        self._debt = max(1.0, loss / self._probe_share)
        return 1

    def goes_on(self, confidence: float) -> bool:
        return True

    def observe(self, proposed: Sequence[int], accepted: Sequence[int]) -> None:
        if not any(proposed):
            return
        self._kept = [self._FORGET * value for value in self._kept]
        self._seen = [self._FORGET * value for value in self._seen]
        for tried, kept in zip(proposed, accepted, strict=True):
            # Position i was judged only if everything before it was kept.
            for position in range(min(tried, kept + 1)):
                self._seen[position] += 1 / len(proposed)
                self._kept[position] += (position < kept) / len(proposed)
