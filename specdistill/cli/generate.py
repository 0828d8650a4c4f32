"""`specdistill generate`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from specdistill.cli import next_command
from specdistill.distill.answers.generate_config import GenerateConfig


def command(config: Annotated[GenerateConfig, Parameter(name="*")]) -> str:
    """Let the target write answers to train on."""
    from specdistill.distill.answers.generate import generate
    from specdistill.report.distill import generation_table
    from specdistill.report.progress import TerminalProgress
    from specdistill.serving.engines import maker_of

    generation_table(generate(config, TerminalProgress(), maker_of(config.engine.rollout_engine)))
    return next_command.after_generate(config)
