"""How long training takes on a machine whose three speeds are known, and how much fits a budget."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class TrainingPace:
    """Training of one kind of draft. Speeds are answer tokens per second; prompts are within them."""

    trains: float
    """Speed of the draft, on text that the target has read."""
    reads: float
    """Speed of the target, over text that is learned from."""
    writes: float | None
    """Speed of the target as a writer; None where the answers are there already."""
    text: float
    """Answer tokens that there are, of all answers to all prompts. Beyond them text comes again."""
    read_once: bool
    """Whether what the target says of a text is kept for the next time."""

    def seconds(self, tokens: float) -> float:
        """Time of training on so many answer tokens."""
        fresh = min(tokens, self.text)
        written = 0.0 if self.writes is None else fresh / self.writes
        return tokens / self.trains + (fresh if self.read_once else tokens) / self.reads + written

    def tokens(self, seconds: float) -> float:
        """Answer tokens that a budget is enough for."""
        for_fresh = self.seconds(self.text)
        if seconds <= for_fresh:
            return self.text * seconds / for_fresh
        again = 1 / self.trains + (0.0 if self.read_once else 1 / self.reads)
        return self.text + (seconds - for_fresh) / again


@dataclass(frozen=True, kw_only=True)
class ParallelPace:
    """Training of a parallel draft: an ordinary draft first, then a run on the same answers that makes it parallel.

    The second run reads the answers that the first one wrote; what the target says of them it has to compute again.
    """

    ordinary: TrainingPace
    """The first run."""
    parallel: TrainingPace
    """The second run, if it had to write the answers too."""

    def seconds(self, ordinary_tokens: float, parallel_tokens: float) -> float:
        """Time of both runs on so many answer tokens each."""
        more = replace(self.parallel, writes=None).seconds(parallel_tokens)
        if self.ordinary.writes is not None:
            # Answers that only the second run gets to.
            fresh = min(parallel_tokens, self.parallel.text) - min(ordinary_tokens, self.ordinary.text)
            more += max(0.0, fresh) / self.ordinary.writes
        return self.ordinary.seconds(ordinary_tokens) + more

    def tokens(self, seconds: float) -> float:
        """Answer tokens of each of the two runs that a budget is enough for, as many in one as in the other."""
        both = replace(
            self.ordinary,
            trains=1 / (1 / self.ordinary.trains + 1 / self.parallel.trains),
            reads=1 / (1 / self.ordinary.reads + 1 / self.parallel.reads),
        )
        return both.tokens(seconds)
