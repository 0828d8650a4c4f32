"""`specdistill check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from specdistill.cli import next_command
from specdistill.serving.check_config import CheckConfig


def command(config: Annotated[CheckConfig, Parameter(name="*")]) -> str:
    """Say which serving engines will load a pair, and whether the target holds a head of its own."""
    from specdistill.files import atomic, locks
    from specdistill.report.json_file import json_text
    from specdistill.report.serving import own_head_lines, verdict_lines
    from specdistill.serving.gates import check
    from specdistill.serving.head_gates import made_for
    from specdistill.serving.own_head import find_own_head

    json = Path(config.json) if config.json else None
    with locks.file_lock(json, "--json", print):
        atomic.refuse_existing_file(json, "--json")
        verdicts, own_head = check(config), find_own_head(config)
        remark = made_for(config.target, config.draft) if any(verdict.loads for verdict in verdicts) else None
        if json is not None:
            engines = [verdict.to_json() for verdict in verdicts]
            atomic.write_text(json, json_text({"engines": engines, "own_head": own_head, "remark": remark}))
    if remark is not None:
        print(f"BEWARE: {remark}")
    verdict_lines(verdicts)
    own_head_lines(own_head)
    return next_command.after_check(config, verdicts, own_head)
