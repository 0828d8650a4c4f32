"""`specdistill advise`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from specdistill.distill.advising.config import AdviseConfig


def command(config: Annotated[AdviseConfig, Parameter(name="*")]) -> str:
    """Say which draft to make, or none: by counts on your answers, times of this machine, and known results."""
    from specdistill.distill.advising.advise import AdviceFailedError, AdviceInterruptedError, advise
    from specdistill.files import atomic, locks
    from specdistill.report.advice import advice_tables, next_step
    from specdistill.report.bench_files import BenchFiles
    from specdistill.report.progress import TerminalProgress

    progress, stopped = TerminalProgress(), None
    json = Path(config.json) if config.json else None
    files = BenchFiles(json, None, progress.say)
    with locks.file_lock(json, "--json", progress.say):
        atomic.refuse_existing_file(json, "--json")
        try:
            advice = advise(config, progress, files.keep)
        except (AdviceInterruptedError, AdviceFailedError) as error:
            stopped, advice = error, error.advice
        unwritten = files.write(advice)
    advice_tables(advice)
    if json and not unwritten:
        print(f"json: {json}")
    for error in unwritten.values():
        if stopped is None:
            raise error
        progress.say(str(error))
    if stopped is not None:
        raise stopped
    return next_step(advice)
