"""`specdistill init-draft`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from specdistill.cli import next_command
from specdistill.distill.cutting.config import InitDraftConfig


def command(config: Annotated[InitDraftConfig, Parameter(name="*")]) -> str:
    """Cut a draft out of the target's own layers, or fit a small model of another family to its vocabulary."""
    from specdistill.distill.cutting.init_draft import init_draft
    from specdistill.report.progress import TerminalProgress

    summary = init_draft(config, TerminalProgress())
    head = "" if summary.head_size is None else f", output head of {summary.head_size:,} ids"
    print(
        f"{config.output}: layers {', '.join(map(str, summary.layers))} of {config.donor or config.target}; "
        f"{summary.parameters:,} of {summary.target_parameters:,} parameters{head}"
    )
    return next_command.after_init_draft(config)
