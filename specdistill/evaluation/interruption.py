"""Ctrl-C and failures in a bench: what was measured until then becomes a report that says so."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from specdistill.errors import SHORTER_TEXTS, OutOfMemoryError, SpecdistillError, first_line, is_out_of_memory
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


class BenchFailedError(SpecdistillError):
    """A part of a bench failed after something was measured.

    Args:
        report: The report of what was measured; its `partial` says what failed, and where.
        partial: That section.
    """

    def __init__(self, report: Report, partial: Partial) -> None:
        super().__init__(f"{partial.why}; {partial.prompts_done} of {partial.prompts_asked} prompts are kept")
        self.report = report


class Interruption:
    """Remembers a Ctrl-C or a failure, so that what was done until then is still used. A second Ctrl-C ends everything.

    Args:
        say: Where it is announced.
        remedy: Remedy where memory ends.
    """

    def __init__(self, say: Callable[[str], None], remedy: str = SHORTER_TEXTS) -> None:
        self._say, self.remedy = say, remedy
        self.where = "answers"
        """The part that runs."""
        self.error: BaseException | None = None
        """Ended the bench."""
        self._ended_in = ""
        self.left_out: dict[str, BaseException] = {}
        """Part that failed by itself -> its error."""

    def __bool__(self) -> bool:
        return self.error is not None

    @property
    def why_not_timed(self) -> str:
        """Reason for a report without timed decoding, to follow `since`."""
        if self.error is None:
            return "the bench was still running when this was written"
        if isinstance(self.error, KeyboardInterrupt):
            return "the bench was interrupted before that"
        return f"{self._ended_in} failed"

    def __call__(self, error: BaseException) -> None:
        """Takes a Ctrl-C or a failure that a step of the bench caught; no further part runs."""
        if self.error is None:
            self.error, self._ended_in = error, self.where
        if isinstance(error, KeyboardInterrupt):
            self._say("interrupted; making the report of what was done (Ctrl-C again ends at once)")
            return
        _free_memory(error)
        self._say(f"{self._reason(self.where, error)}; making the report of what was done")

    def only_interrupts(self, error: BaseException) -> None:
        """Takes a Ctrl-C, and passes a failure on: for steps of a part that can be left out."""
        if not isinstance(error, KeyboardInterrupt):
            raise error
        self(error)

    def caught(self) -> AbstractContextManager[None]:
        """Takes a Ctrl-C or a failure inside the block, whose result is then missing."""
        return self._taking(self)

    def optional(self, name: str) -> AbstractContextManager[None]:
        """Takes a Ctrl-C inside the block. A failure is said and the result left out, and the bench goes on.

        Args:
            name: Name of the part.
        """

        return self._taking(lambda error: self.leave_out(name, error))

    def leave_out(self, name: str, error: BaseException) -> None:
        """Takes the failure of a part that the report can do without; the bench goes on.

        Args:
            name: Name of the part.
            error: Why it failed.
        """
        self.left_out[name] = error
        _free_memory(error)
        self._say(f"{self._reason(name, error)}; the report is without it")

    @contextmanager
    def _taking(self, failed: Callable[[BaseException], None]) -> Iterator[None]:
        """Takes the first Ctrl-C inside the block, and hands a failure on."""
        try:
            yield
        except KeyboardInterrupt as error:
            if self:
                raise
            self(error)
        except Exception as error:
            # Anything: nothing that was measured may be lost by a part that fails.
            failed(error)

    def check(self, done: int) -> None:
        """Ends the bench where too little was done for a report.

        Args:
            done: Prompts that the report would cover.

        Raises:
            BaseException: The Ctrl-C or failure, where there was one and fewer than two prompts are done.
        """
        if self.error is not None and done < FEWEST:
            raise self.error

    def partial(self, done: int, asked: int) -> Partial | None:
        """Says how far the bench came, and why not further; None where nothing is missing.

        Args:
            done, asked: Prompts that the report covers, and those of the whole run.
        """
        left_out = {name: self._reason(name, error) for name, error in self.left_out.items()}
        if self.error is None and not left_out:
            return None
        where = self._ended_in if self.error is not None else next(iter(left_out))
        why = left_out[where] if self.error is None else self._reason(where, self.error)
        return Partial(prompts_done=done, prompts_asked=asked, why=why, where=where, left_out=left_out or None)

    def raise_with(self, report: Report, done: int, asked: int) -> None:
        """Ends a bench that a stop or a failure made partial; does nothing where nothing is missing.

        Args:
            report: The report of what was measured.
            done, asked: As in `partial`.

        Raises:
            BenchInterruptedError: After Ctrl-C.
            BenchFailedError: Something failed.
        """
        partial = self.partial(done, asked)
        if partial is None:
            return
        report = replace(report, partial=partial)
        if isinstance(self.error, KeyboardInterrupt):
            raise BenchInterruptedError(report)
        raise BenchFailedError(report, partial) from self.error or next(iter(self.left_out.values()))

    def _reason(self, where: str, error: BaseException) -> str:
        if isinstance(error, KeyboardInterrupt):
            return f"interrupted during {where}"
        if isinstance(error, OutOfMemoryError):
            return f"{where}: {first_line(error)}"
        if is_out_of_memory(error):
            return f"{where}: out of memory; {self.remedy}"
        kind = "" if isinstance(error, SpecdistillError) else f"{type(error).__name__}: "
        return f"{where} failed: {kind}{first_line(error)}"


def unfinished(report: Report, where: str, done: int, asked: int, *, is_done: bool = True) -> Report:
    """Marks a report that is written while the bench goes on.

    Args:
        report: The report so far.
        where: The part that is done, or runs.
        done, asked: Prompts that the report covers, and those of the whole run.
        is_done: Whether that part is done.
    """
    when = f"after {where}" if is_done else f"in the middle of {where}"
    why = f"the bench was still running when this was written, {when}; if it runs no more, it was killed"
    return replace(report, partial=Partial(prompts_done=done, prompts_asked=asked, why=why, where=where))


def _free_memory(error: BaseException) -> None:
    """Lets go of what the failed calls held: the error is kept, and with it their variables."""
    traceback.clear_frames(error.__traceback__)


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
        why: Why decoding was not timed.
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
        why=f"decoding was not timed, since {why}",
    )
