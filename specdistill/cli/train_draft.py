"""`specdistill train-draft`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from specdistill.cli import next_command
from specdistill.distill.config import TrainConfig


def command(config: Annotated[TrainConfig, Parameter(name="*")]) -> str:
    """Distil a draft (student) toward its target (teacher)."""
    from specdistill.distill.train_draft import train_draft
    from specdistill.report.distill import training_table
    from specdistill.report.progress import TerminalProgress
    from specdistill.serving.engines import maker_of

    summary = train_draft(config, TerminalProgress(), make_engine=maker_of(config.on_policy.rollout_engine))
    training_table(summary)
    return next_command.after_train_draft(
        config,
        same_tokenizer=summary.measure == "alpha",
        kept_start=summary.kept_step == 0,
        scored="score" in summary.before,
    )
