"""`specdistill check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from specdistill.serving.check_config import CheckConfig


def command(config: Annotated[CheckConfig, Parameter(name="*")]) -> None:
    """Say which serving engines will load a pair."""
    from specdistill.files import atomic
    from specdistill.report.json_file import json_text
    from specdistill.report.serving import verdict_lines
    from specdistill.serving.gates import check

    verdicts = check(config)
    verdict_lines(verdicts)
    if config.json is not None:
        atomic.write_text(Path(config.json), json_text({"engines": [verdict.to_json() for verdict in verdicts]}))
