"""`specdistill carry-head`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from specdistill.cli import next_command
from specdistill.serving.carry_config import CarryHeadConfig


def command(config: Annotated[CarryHeadConfig, Parameter(name="*")]) -> str:
    """Give a fine-tuned target the head back by which its base drafts for itself (MTP)."""
    from specdistill.report.progress import TerminalProgress
    from specdistill.report.serving import carried_lines
    from specdistill.serving.carry_head import carry_head

    carried_lines(carry_head(config, TerminalProgress()))
    return next_command.after_carry_head(config)
