"""Which draft of a run is written, when the run stops early, and the words that say so."""

from __future__ import annotations

import math
from typing import cast

from specdistill.distill.training import guard_rails
from specdistill.distill.training.checkpoints import RunState
from specdistill.distill.training.measures import HeldOutMeasures, Records
from specdistill.distill.training.settings import EvaluationSettings

_WIDE = 0.1
"""Relative distance from which two drafts differ widely, where the interval of the difference excludes 0 as well."""
_EVALUATIONS_TO_TELL = 3
"""Evaluations after which a watched number should have moved."""
_PERFECT_ALPHA = 1 - 1e-4


class Keeper:
    """Keeps the best draft by the watched number, or the newest that was measured.

    Args:
        measures: Says which number is watched.
        settings: `keep` and `patience`.
    """

    def __init__(self, measures: HeldOutMeasures, settings: EvaluationSettings) -> None:
        self._measures, self._settings = measures, settings
        self.records: dict[str, Records] = {}
        """Held-out records of the drafts `start`, `best` and `last`; empty before the first evaluation."""

    @property
    def kept(self) -> Records:
        """Held-out records of the draft that is written."""
        return self.records[self._settings.keep]

    def take(self, state: RunState, records: Records) -> bool:
        """Takes an evaluation in, and writes it into the state.

        Returns:
            Whether its draft is the one to write.
        """
        value = self._measures.merit(self._measures.means(records))
        is_best = not self.records or value > state.best_value or self._wins_between_equals(records, value, state)
        self.records = {"start": self.records.get("start", records), "best": self.records.get("best", records)}
        self.records["last"] = records
        if is_best:
            self.records["best"] = records
            # A later step that is no better by any number starts no new patience.
            only_later = self._measures.own_target and value == state.best_value
            state.waited = state.waited + state.step - state.best_step if only_later else 0
            state.best_step, state.best_value = state.step, value
        keeps = is_best or self._settings.keep == "last"
        if keeps:
            state.kept_step = state.step
        return keeps

    def _wins_between_equals(self, records: Records, value: float, state: RunState) -> bool:
        """Whether a draft is the better one of two with the same watched number.

        A score is 0 for a whole run where the task is hard, and the start would be kept though all else got better.
        """
        if value != state.best_value:
            return False
        new, best = (self._measures.means(each) for each in (records, self.records["best"]))
        return self._measures.wins_between_equals(new, best)

    def no_patience_left(self, state: RunState) -> bool:
        """Whether too many evaluations brought no better watched number."""
        patience = self._settings.patience
        waited = state.step - state.best_step + state.waited
        return bool(patience) and waited // self._settings.eval_every >= patience

    def no_patience_line(self, state: RunState) -> str:
        """Says why the run stops."""
        best = self._measures.label(self._measures.watched)
        return f"stopped at step {state.step}: no better {best} since step {state.best_step - state.waited}"

    def lines(self, state: RunState) -> list[str]:
        """An evaluation in words: warnings, the numbers, and at the start which of them are bounds."""
        means = self._measures.means(self.records["last"])
        shown = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
        best = "  (best)" if state.step and state.step == state.best_step else ""
        lines = [f"warning: {warning}" for warning in self.warnings(state)]
        lines.append(f"step {state.step}: held-out {self._measures.measure}: {shown}{best}")
        if state.step:
            return lines
        blind = self._measures.blind_reward(self.records["start"])
        lines += [] if blind is None else [f"warning: {blind}"]
        return [*lines, *filter(None, (self._measures.unwatched_scorer, self._measures.caveat))]

    def best(self, state: RunState) -> str:
        """The watched number's name and its best value."""
        watched = self._measures.watched
        # The sign of a merit is its own inverse.
        return f"{self._measures.label(watched)} {self._measures.merit({watched: state.best_value}):.3f}"

    def why(self, state: RunState) -> str:
        """Why the draft that is written is kept, in words."""
        best, merits = self.best(state), self._merits(state)
        equal = f"every held-out {self._measures.label(self._measures.watched)} was equal"
        all_equal = len(merits) > 1 and len({*merits}) == 1 and self._measures.breaks_ties
        if self._settings.keep == "last":
            which = equal if all_equal else f"best held-out {best} at step {state.best_step}"
            return f"the last one that was measured (--keep last); {which}"
        if all_equal:
            start = "" if state.best_step else "the start; "
            return f"{start}{equal}; kept by {self._measures.decides_between_equals}"
        if not state.best_step:
            return f"the start; no later draft had a better held-out {best}"
        if self._measures.own_target and self._measures.breaks_ties and merits and merits[0] == state.best_value:
            return f"held-out {best}, no better than the start's; kept by {self._measures.decides_between_equals}"
        return f"best held-out {best}"

    def _merits(self, state: RunState) -> list[float]:
        """The watched number of each evaluation, with the sign that makes more better."""
        watched = self._measures.watched
        key = self._measures.history_key(watched)
        return [self._measures.merit({watched: cast(float, entry[key])}) for entry in state.history]

    def warnings(self, state: RunState) -> list[str]:
        """Warns of a watched number that gets worse, or that can't get better."""
        watched = self._measures.watched
        name, history = self._measures.label(watched), state.history
        if len(history) == 1 and self._measures.is_alpha(watched) and state.best_value > _PERFECT_ALPHA:
            return self._own_target(name)
        merits = self._merits(state)
        worse = guard_rails.worsening(merits)
        if len(merits) == _EVALUATIONS_TO_TELL and len({*merits}) == 1:
            other = self._measures.decides_between_equals
            decides = "" if other == name else f", so {other} decides"
            blind = f"it tells no draft from another{decides}; --watch another"
            return [f"held-out {name} was {merits[0]:.3f} every time: {blind}"]
        if worse is None:
            return []
        return [f"held-out {name}: {worse}; {self._measures.remedy}"]

    def _own_target(self, name: str) -> list[str]:
        """Warns of a draft that is its own target, where that decides anything."""
        if self._settings.keep == "last" and not self._settings.patience:
            return []
        remedy = "" if self._settings.keep == "last" else ", or --keep last"
        return [
            f"the draft starts with {name} 1: it is its own target, and training can only lower that; choose "
            f"--watch score, reward or loss{remedy}"
        ]

    def disagreement(self, state: RunState) -> str | None:
        """Warns where the best and the last draft differ widely; None where they don't."""
        if state.best_step == state.step:
            return None
        best, last = (self._measures.means(self.records[name]) for name in ("best", "last"))
        gains = self._measures.gains(self.records["best"], self.records["last"])
        wide = [
            f"{self._measures.label(name)} {best[name]:.3f} against {last[name]:.3f}"
            for name, gain in gains.items()
            if gain.has_interval and (gain.low > 0 or gain.high < 0) and _is_wide(best[name], last[name])
        ]
        if not wide:
            return None
        other = "last" if self._settings.keep == "best" else "best"
        watched = self._measures.label(self._measures.watched)
        return (
            f"the best draft by held-out {watched} (step {state.best_step}) and the last (step {state.step}) differ "
            f"widely: {', '.join(wide)}; step {state.kept_step} was kept, --keep {other} keeps the other"
        )


def _is_wide(one: float, other: float) -> bool:
    return math.isfinite(one - other) and abs(one - other) >= _WIDE * max(abs(one), abs(other))
