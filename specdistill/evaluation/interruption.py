"""Ctrl-C in a bench: what was measured until then becomes a report that says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from specdistill.evaluation.economics import Economics
from specdistill.evaluation.latency import TimedRun
from specdistill.evaluation.report import Latency, Partial, Report, Speed
from specdistill.evaluation.report_acceptance import CountedAcceptance
from specdistill.evaluation.sections import counted_section, latency_section
from specdistill.evaluation.statistics import Estimate

UNKNOWN = Estimate(float("nan"), float("nan"), float("nan"))
"""An estimate of something that was not measured."""
FEWEST = 2
"""Prompts below which nothing is reported: a single one has no spread."""
_UNTIMED = Speed(tokens_per_second=float("nan"), time_to_first_token=float("nan"), time_per_output_token=float("nan"))


class BenchInterruptedError(KeyboardInterrupt):
    """Ctrl-C or SIGTERM in a bench that had measured something.

    Args:
        report: The report of what was measured; its `partial` says how far the bench came.
    """

    def __init__(self, report: Report) -> None:
        super().__init__("the bench was interrupted")
        self.report = report


class Interruption:
    """Remembers Ctrl-C, so that what was done until then is still used. A second one ends everything.

    Args:
        say: Where it is announced.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.error: KeyboardInterrupt | None = None

    def __bool__(self) -> bool:
        return self.error is not None

    def __call__(self, error: KeyboardInterrupt) -> None:
        """Takes a Ctrl-C that a step of the bench caught."""
        self.error = error
        self._say("interrupted; making the report of what was done (Ctrl-C again ends at once)")

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Takes a Ctrl-C inside the block, whose result is then missing."""
        try:
            yield
        except KeyboardInterrupt as error:
            if self:
                raise
            self(error)

    def check(self, done: int) -> None:
        """Ends the bench where too little was done for a report.

        Args:
            done: Prompts that the report would cover.

        Raises:
            KeyboardInterrupt: There was one, and fewer than two prompts are done.
        """
        if self.error is not None and done < FEWEST:
            raise self.error

    def partial(self, timed: int, to_time: int, scored: int, asked: int) -> Partial:
        """Says how far the bench came.

        Args:
            timed, to_time: Prompts that were timed, and that should have been.
            scored, asked: Prompts whose answers were scored, and all prompts.
        """
        if timed:
            return Partial(prompts_done=timed, prompts_asked=to_time, why="interrupted while decoding was timed")
        return Partial(prompts_done=scored, prompts_asked=asked, why="interrupted before decoding was timed")


def counted_or_unknown(runs: Sequence[TimedRun], num_draft_tokens: int) -> CountedAcceptance:
    """Acceptance as the timed runs counted it; unknown without any."""
    if runs:
        return counted_section(runs, num_draft_tokens)
    return CountedAcceptance(
        by_position=[],
        by_position_conditional=[],
        mean_acceptance_length=UNKNOWN,
        mean_acceptance_length_macro=float("nan"),
        acceptance_rate=UNKNOWN,
    )


def latency_or_unknown(runs: Sequence[TimedRun]) -> Latency:
    """`latency` of the report; unknown without timed runs."""
    if runs:
        return latency_section(runs)
    return Latency(baseline=_UNTIMED, speculative=_UNTIMED, speedup=UNKNOWN, engine_efficiency=float("nan"))


def unknown_economics(num_draft_tokens: int, why: str) -> Economics:
    """`economics` of a bench that timed no steps: no verdict.

    Args:
        num_draft_tokens: Draft length of the report.
        why: Why nothing was timed.
    """
    return Economics(
        cost_ratio=None,
        verify_cost={},
        round_cost={},
        break_even_alpha=None,
        best_num_draft_tokens=num_draft_tokens,
        predicted_speedup={},
        perfect_draft_speedup=float("nan"),
        verdict="unknown",
        why=why,
    )
