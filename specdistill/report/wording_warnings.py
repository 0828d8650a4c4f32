"""Warnings of a bench, the same for terminal and HTML page."""

from __future__ import annotations

import math

from specdistill.evaluation.cut_answers import cut_line
from specdistill.evaluation.disturbed import disturbed_checks
from specdistill.evaluation.report import Report
from specdistill.files.parallel_drafting import trained_for

_SURPRISING = 0.05
"""Relative distance of an engine's counter from the prediction that chance and the ends of answers don't explain."""
_TOO_CHEAP = 0.6
"""Cost of a check, in plain steps, that only a load that ended explains: it reads the same weights as a step."""
_ANOTHER_MACHINE = 1.35
"""Measured over predicted speed-up that only a load that came or went explains; quiet runs stayed below 1.05."""
_AGAIN = "measure again with nothing beside it"


def prediction_warning(report: Report) -> str | None:
    """The warning where an engine's own counter is far from what its rule should give; None where it is not."""
    prediction = report.acceptance.prediction
    if prediction is None:
        return None
    off = prediction.measured_over_predicted_minus_1
    if not (abs(off.mean) > _SURPRISING and (off.low > 0 or off.high < 0)):
        return None
    return (
        f"the engine's tokens per target call are {off.mean:+.1%} [{off.low:+.1%}, {off.high:+.1%}] off what its rule "
        "should give: it runs another rule, another model or other settings than you think, or verifies wrongly"
    )


def cut_lines(report: Report) -> list[str]:
    """Answers that were scored without their end; empty without --scorer."""
    scores = report.score
    if scores is None:
        return []
    limit = report.setup.max_new_tokens
    lines = (
        cut_line("the target", scores.target_cut, scores.prompts, limit),
        cut_line("the draft alone", scores.draft_cut, scores.prompts, limit),
    )
    return [line for line in lines if line]


def length_warnings(report: Report) -> list[str]:
    """Parallel drafts that guess more tokens here than they were trained to guess."""
    drafts, asked = {"": report.draft}, report.setup.num_draft_tokens
    if report.compare is not None:
        drafts[f"--compare {report.compare.draft.name}: "] = report.compare.draft
    trained = {name: facts.parallel_draft_tokens for name, facts in drafts.items()}
    return [
        f"{name}{trained_for(number, asked, 'this bench')}; no mask was trained for the guesses beyond"
        for name, number in trained.items()
        if number is not None and asked > number
    ]


def speed_warning(report: Report) -> str | None:
    """The warning where the timed costs can't be right, or contradict what was measured; None where they may be.

    Slower than predicted is no contradiction: reading the prompts counts in what is measured. A speed-up beyond that
    of a perfect draft is the verdict's matter.
    """
    economics, measured = report.economics, report.latency.speedup
    checks = {tokens: cost for tokens, cost in economics.verify_cost.items() if cost < _TOO_CHEAP}
    if checks:
        tokens, cost = min(checks.items(), key=lambda entry: entry[1])
        found = f"checking {tokens} tokens took {cost:.2f} of a plain step, which is impossible"
        return f"{found}: other work ran on this machine meanwhile; {_AGAIN}"
    remark = disturbed_checks(economics.verify_cost)
    if remark is not None:
        return f"{remark}; predictions rest on them: {_AGAIN}"
    predicted = economics.predicted_speedup.get(report.setup.num_draft_tokens, math.nan)
    if not (measured.has_interval and measured.low > predicted * _ANOTHER_MACHINE):
        return None
    found = f"{measured.mean:.2f}x was measured, and by the costs of single steps it should be {predicted:.2f}x"
    return f"{found}: other work ran on this machine meanwhile; {_AGAIN}"
