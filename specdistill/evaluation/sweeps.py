"""Further timed runs after the main one, where they are asked for: other leniences, other batch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from specdistill.data.batch import Example
from specdistill.decoding.costs import windows_of
from specdistill.evaluation.answer_scores import AnswerJudge
from specdistill.evaluation.config import MeasureConfig
from specdistill.evaluation.interruption import Interruption
from specdistill.evaluation.lenience_sweep import lenience_rows
from specdistill.evaluation.load import measure_load
from specdistill.evaluation.measured import Models, Scores, Timed
from specdistill.evaluation.report import LenienceRow, Report
from specdistill.evaluation.report_load import Load
from specdistill.progress import Progress


@dataclass(frozen=True)
class Sweeps:
    """Sections of the report; None where they were not asked for."""

    lenience: list[LenienceRow] | None = None
    load: Load | None = None

    def into(self, report: Report) -> Report:
        """The report with these sections."""
        return replace(report, lenience_sweep=self.lenience, load=self.load)


def run_sweeps(
    config: MeasureConfig,
    models: Models,
    encoded: Sequence[list[int]],
    answers: Sequence[Example],
    scores: Scores,
    timed: Timed,
    context: int,
    progress: Progress,
    stop: Interruption,
    judge: AnswerJudge | None,
) -> Sweeps:
    """Decodes the timed prompts again under every lenience and at every batch size of the settings.

    Args:
        config: The settings.
        models: Target and draft.
        encoded: All prompts.
        answers: The target's answers to them.
        scores: The draft's scores on those.
        timed: The main timed run; without one nothing is swept.
        context: Tokens before a timed step.
        progress: Where bars go.
        stop: Ctrl-C.
        judge: Scores the answers of each lenience.
    """
    lenience = load = None
    asked = encoded[: timed.asked]
    if config.acceptance.lenience_sweep and timed.runs and not stop:
        lenience = lenience_rows(models, config, asked, answers, timed.num_draft_tokens, progress, judge)
    if config.load.batch_sizes and timed.runs and not stop:
        # Only the steps of a mixture of experts depend on the tokens.
        windows = windows_of(answers, config.acceptance.max_draft_tokens + 1) if scores.experts else ()
        load = measure_load(config, models, asked, scores.predicted, context, windows, progress, stop)
    return Sweeps(lenience, load)
