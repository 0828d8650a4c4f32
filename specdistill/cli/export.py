"""`specdistill export`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from specdistill.cli import next_command
from specdistill.serving.export_config import ExportConfig


def command(config: Annotated[ExportConfig, Parameter(name="*")]) -> str:
    """Write a draft as one serving engine wants it."""
    from specdistill.report.progress import TerminalProgress
    from specdistill.report.serving import exported_lines
    from specdistill.serving.export import export

    exported = export(config, TerminalProgress())
    exported_lines(exported)
    return next_command.after_export(config, exported.verdict.command, exported.trained_tokens)
