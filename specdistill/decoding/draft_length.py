"""Decides how many tokens to draft per round: a fixed number, while the draft is confident, or the fastest number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from specdistill.decoding.costs import Costs
from specdistill.errors import ConfigError


class DraftLength(Protocol):
    """Decides before each round how many tokens to draft."""

    max_tokens: int
    """Largest number that `limit` returns. Caches have room for it."""
    watches_confidence: bool
    """Whether to call `goes_on`, which costs a softmax per draft step."""

    def limit(self, unread: int) -> int:
        """Largest number of draft tokens in the next round; 0 makes a plain target step.

        Args:
            unread: Tokens that the draft has to read first, in the row that has most of them.
        """
        ...

    def goes_on(self, confidence: float) -> bool:
        """Whether a row drafts another token after the one just drafted, which stays in the proposal.

        Dropping a token because of its own probability would change the distribution it was drawn from, and
        verification would be biased.

        Args:
            confidence: Product of the draft's probabilities of the row's tokens in this round.
        """
        ...

    def observe(self, proposed: Sequence[int], accepted: Sequence[int]) -> None:
        """Receives the result of a round.

        Args:
            proposed: Draft tokens of each row.
            accepted: How many of them the target kept.
        """
        ...


class FixedLength:
    """Drafts the same number of tokens in every round.

    Args:
        num_draft_tokens: Tokens per round (gamma).

    Raises:
        ConfigError: The number is below 1.
    """

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
    """Drafts in each row until the product of the draft's probabilities falls below a threshold.

    Args:
        max_tokens: Most tokens per round.
        threshold: In (0, 1).

    Raises:
        ConfigError: A value is out of range.
    """

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
    """Drafts the number of tokens with the highest expected speed, by measured costs and the acceptance so far.

    If no number beats a plain step, it decodes plainly and tests the draft from time to time. Tests are so rare that
    they cost at most `probe_share` of the time.

    Counts carry over from one `generate` call to the next. Under a rule that samples, earlier calls therefore change
    which tokens are generated. They do not change the distribution of the tokens.

    Args:
        costs: Measured at the batch size that is served, for 1 to max_tokens + 1 tokens per target pass.
        max_tokens: Most tokens per round.
        probe_share: Largest share of time for drafts that are expected to make decoding slower.

    Raises:
        ConfigError: `costs` does not cover every pass.
    """

    watches_confidence = False
    _DECAY = 0.99
    """Factor per round for older counts, since acceptance drifts within a text: after 70 rounds they weigh half."""
    _PRIOR = (2.0, 3.0)
    """Accepted and proposed tokens assumed at the start: an acceptance of 2/3 lets a new draft be tried."""

    def __init__(self, costs: Costs, max_tokens: int, probe_share: float = 0.02) -> None:
        if set(costs.verify_cost) < set(range(1, max_tokens + 2)):
            covered = sorted(costs.verify_cost)
            raise ConfigError(f"costs must cover passes of 1 to {max_tokens + 1} tokens, got {covered}")
        self.max_tokens, self._costs, self._probe_share = max_tokens, costs, probe_share
        self._kept = [0.0] * max_tokens
        """Decayed number of tokens kept at each position of a draft."""
        self._seen = [0.0] * max_tokens
        """Decayed number of tokens judged at each position."""
        self._plain_steps_left = 0.0
        """Plain steps to make before the next test of the draft."""

    def expected_speedup(self, length: int) -> float:
        """Expected tokens per time of a plain step, if `length` tokens are drafted; a plain step gives 1."""
        tokens, all_kept, acceptance = 1.0, 1.0, self._PRIOR[0] / self._PRIOR[1]
        for position in range(length):
            prior_kept, prior_seen = self._PRIOR
            if position and self._seen[position] == 0:
                # A position that was never judged is assumed to be as good as the one before it.
                prior_kept, prior_seen = acceptance, 1.0
            acceptance = (self._kept[position] + prior_kept) / (self._seen[position] + prior_seen)
            all_kept *= acceptance
            tokens += all_kept
        return tokens / self._costs.round_cost(length, tokens)

    def limit(self, unread: int) -> int:
        best = max(range(1, self.max_tokens + 1), key=self.expected_speedup)
        if self.expected_speedup(best) >= 1:
            return best
        if self._plain_steps_left > 0:
            self._plain_steps_left -= 1
            return 0
        # Drafting one token is the cheapest test. The draft must first read what it missed since the last test; a long
        # pass costs at most as much per token as the widest pass that was measured.
        widest = max(self._costs.verify_cost)
        reading = self._costs.cost_ratio * unread * self._costs.verify_cost[widest] / widest
        loss = self._costs.cost_ratio + self._costs.verify_cost[2] - 1 + reading
        self._plain_steps_left = max(1.0, loss / self._probe_share)
        return 1

    def goes_on(self, confidence: float) -> bool:
        return True

    def observe(self, proposed: Sequence[int], accepted: Sequence[int]) -> None:
        if not any(proposed):
            return
        self._kept = [self._DECAY * value for value in self._kept]
        self._seen = [self._DECAY * value for value in self._seen]
        for count, kept in zip(proposed, accepted, strict=True):
            # A position is judged only if all positions before it were kept.
            for position in range(min(count, kept + 1)):
                self._seen[position] += 1 / len(proposed)
                self._kept[position] += (position < kept) / len(proposed)
