"""A wait is announced from the first steps, where it is worth knowing, and again where it becomes another."""

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
    """2 s a step: the first only starts the clock, the sixth ends 10 s later; 94 are left."""
    said = lines([1] * 100, total=100)
    assert said[:6] == [None] * 5 + ["training: about 4 min to go, by the first 6 of 100 steps"]
    assert not any(said[6:]), "once is enough where nothing changes"


def test_ten_seconds_of_a_long_task_are_not_enough():
    """`about 1 h 1 min to go, by the first 9 of 2,560 tokens` took 21 min: 2 % of the work is 52 tokens."""
    said = lines([1] * 100, total=2560, seconds=0.5, name="answers")
    assert [place for place, line in enumerate(said) if line] == [52]
    assert said[52] == "answers: about 21 min to go, by the first 53 of 2,560 steps"


def test_units_that_take_minutes_are_judged_after_a_while():
    assert lines([1] * 3, total=1000, seconds=30) == [
        None, None, "training: about 8 h 19 min to go, by the first 3 of 1,000 steps"
    ]  # fmt: skip


def test_a_wait_that_becomes_another_is_said_again():
    """Ten steps of 10 s, then of 1 s. After 40 s and 5 steps 500 s were left; the average falls with every fast one."""
    time = 0.0
    estimate, said = WaitEstimate("training", 100, "steps", lambda: time), []
    for step in range(100):
        time += 10.0 if step < 10 else 1.0
        said.append(estimate.advance(1))
    found = {place + 1: line for place, line in enumerate(said) if line}
    # By hand: after 3 steps 20 s were watched, 10 s a step. After n > 10 steps the average is (90 + n - 10) / (n - 1).
    assert found[3] == "training: about 17 min to go, by the first 3 of 100 steps"
    again = next(step for step in found if step > 3)
    assert found[again].startswith("training: now about") and len(found) <= 4
    left, expected = (80 + again) / (again - 1) * (100 - again), 970 - (80 + again - 20)
    assert expected > 1.5 * left
    before = again - 1
    assert 970 - (80 + before - 20) <= 1.5 * (80 + before) / (before - 1) * (100 - before)


def test_a_log_says_the_time_to_go_at_every_fifth(monkeypatch, capsys):
    time = iter(range(0, 10_000, 20))
    monkeypatch.setattr(WaitEstimate.__init__, "__defaults__", (lambda: float(next(time)),))
    with TerminalProgress().task("training", 10, "steps") as task:
        for _ in range(10):
            task.advance()
    assert capsys.readouterr().err.splitlines() == [
        "training: 2/10 steps  about 3 min to go",
        "training: 4/10 steps  about 2 min to go",
        "training: 6/10 steps  about 2 min to go",
        "training: 8/10 steps",
        "training: 10/10 steps",
    ]


def test_a_slow_first_step_does_not_count():
    """Loading and warming up took 40 s of it; by it all, a hundred steps would take more than an hour."""
    assert lines([1], total=100, seconds=40) == [None]
    time = iter([40.0, 50.0, 60.0])
    estimate = WaitEstimate("training", 100, "steps", lambda: next(time))
    assert estimate.advance(1) is None
    assert estimate.advance(1) is None, "1 of 100 steps is too little"
    assert estimate.advance(1) == "training: about 17 min to go, by the first 3 of 100 steps"


def test_what_was_done_before_is_no_speed():
    """A run that goes on begins with 80 of 100 steps: 20 s a step, and not 80 steps in no time."""
    assert lines([80, 1, 1], total=100, seconds=20)[1:] == [
        None, "training: about 6 min to go, by the first 82 of 100 steps"
    ]  # fmt: skip


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
    assert capsys.readouterr().err.count("greedy layer search: about 8 min to go, by the first 3 of 98 candidates") == 1
