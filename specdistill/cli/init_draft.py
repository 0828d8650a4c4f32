"""`specdistill init-draft`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from specdistill.distill.cutting.config import InitDraftConfig


def command(config: Annotated[InitDraftConfig, Parameter(name="*")]) -> None:
    """Cut a draft out of the target's own layers, for families without a small sibling."""
    from specdistill.distill.cutting.init_draft import init_draft
    from specdistill.report.progress import TerminalProgress

    record = init_draft(config, TerminalProgress())
    head = f", output head of {record['head_size']:,} ids" if "head_size" in record else ""
    print(
        f"{config.output}: layers {', '.join(map(str, record['layers']))} of {config.target}; "
        f"{record['parameters']:,} of {record['target_parameters']:,} parameters{head}"
    )
