"""A wait is announced once, from the first steps, where it is worth knowing."""

from __future__ import annotations

import pytest

from specdistill.report import estimates
from specdistill.report.estimates import WaitEstimate, duration
from specdistill.report.progress import TerminalProgress


def lines(advances, total, seconds=2.0, name="training"):
    """Lines that are said while units are done, one advance every so many seconds."""
    time = 0.0

    def now() -> float:
        return time

    estimate, said = WaitEstimate(name, total, "steps", now), []
    for amount in advances:
        time += seconds
        said.append(estimate.advance(amount))
    return said


def test_the_first_steps_say_how_long_the_rest_takes():
    """2 s a step: the first only starts the clock, the third ends 4 s later; 97 are left."""
    said = lines([1] * 100, total=100)
    assert said[:3] == [None, None, "training: about 4 min to go, by the first 3 of 100 steps"]
    assert not any(said[3:]), "once is enough"


def test_a_slow_first_step_does_not_count():
    """Loading and warming up took 40 s of it; by it all, a hundred steps would take more than an hour."""
    assert lines([1], total=100, seconds=40) == [None]
    time = iter([40.0, 44.0])
    estimate = WaitEstimate("training", 100, "steps", lambda: next(time))
    assert estimate.advance(1) is None
    assert estimate.advance(1) == "training: about 7 min to go, by the first 2 of 100 steps"


def test_what_was_done_before_is_no_speed():
    """A run that goes on begins with 80 of 100 steps: 20 s a step, and not 80 steps in no time."""
    assert lines([80, 1], total=100, seconds=20) == [None, "training: about 7 min to go, by the first 81 of 100 steps"]


def test_a_short_wait_is_not_worth_a_line():
    assert not any(lines([1] * 20, total=20))
    assert not any(lines([], total=0)) and not any(lines([0, 1, 1], total=2))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(60, "1 min"), (61, "2 min"), (600, "10 min"), (3600, "1 h"), (5000, "1 h 24 min"), (86400, "24 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("on_screen", [False, True])
def test_the_terminal_shows_it_with_a_bar_and_in_a_log(monkeypatch, capsys, on_screen):
    time = iter(range(0, 10_000, 5))
    monkeypatch.setattr(estimates.time, "monotonic", lambda: float(next(time)))
    monkeypatch.setattr(WaitEstimate.__init__, "__defaults__", (estimates.time.monotonic,))
    progress = TerminalProgress()
    progress.console._force_terminal = on_screen
    with progress.task("greedy layer search", 98, "candidates") as task:
        for _ in range(5):
            task.advance()
    assert capsys.readouterr().err.count("greedy layer search: about 8 min to go, by the first 2 of 98 candidates") == 1
