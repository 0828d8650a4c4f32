"""`specdistill annotate`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from specdistill.cli import next_command
from specdistill.distill.answers.annotate_config import AnnotateConfig


def command(config: Annotated[AnnotateConfig, Parameter(name="*")]) -> str:
    """Store what the target thinks of answers, so that training needs no target."""
    from specdistill.distill.answers.annotate import annotate
    from specdistill.report.distill import annotation_lines
    from specdistill.report.progress import TerminalProgress

    annotation_lines(annotate(config, TerminalProgress()))
    return next_command.after_annotate(config)
