"""`specdistill check`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from specdistill.serving.check_config import CheckConfig


def command(config: Annotated[CheckConfig, Parameter(name="*")]) -> None:
    """Say which serving engines will load a pair."""
    from specdistill.report.serving import verdict_lines
    from specdistill.serving.gates import check

    verdict_lines([verdict.to_json() for verdict in check(config)], config.json)
