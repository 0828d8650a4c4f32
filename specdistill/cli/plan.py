"""`specdistill plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from specdistill.cli import next_command
from specdistill.evaluation.plan_config import PlanConfig


def command(config: Annotated[PlanConfig, Parameter(name="*")]) -> str:
    """Estimate what training a draft takes: tokens, accelerator hours, memory, storage."""
    from specdistill.evaluation.plan import plan
    from specdistill.files import atomic
    from specdistill.report.json_file import json_text
    from specdistill.report.plan import plan_tables

    atomic.refuse_existing_file(Path(config.json) if config.json else None, "--json")
    planned = plan(config)
    plan_tables(planned)
    if config.json:
        atomic.write_text(Path(config.json), json_text(planned))
        print(f"json: {config.json}")
    return next_command.after_plan(config)
