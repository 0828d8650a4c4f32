"""`specdistill check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from specdistill.serving.check_config import CheckConfig


def command(config: Annotated[CheckConfig, Parameter(name="*")]) -> None:
    """Say which serving engines will load a pair."""
    from specdistill.files import atomic, locks
    from specdistill.report.json_file import json_text
    from specdistill.report.serving import verdict_lines
    from specdistill.serving.gates import check

    json = Path(config.json) if config.json else None
    with locks.file_lock(json, "--json", print):
        atomic.refuse_existing_file(json, "--json")
        verdicts = check(config)
        if json is not None:
            atomic.write_text(json, json_text({"engines": [verdict.to_json() for verdict in verdicts]}))
    verdict_lines(verdicts)
