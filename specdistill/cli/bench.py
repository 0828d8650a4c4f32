"""`specdistill bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from specdistill.serving.bench_config import BenchConfig


def command(config: Annotated[BenchConfig, Parameter(name="*")]) -> str:
    """Measure what a draft is worth: acceptance under every rule, speed against the plain target, and a verdict."""
    from specdistill.errors import OutputError, ServerError
    from specdistill.evaluation.interruption import BenchFailedError, BenchInterruptedError
    from specdistill.files import atomic, locks
    from specdistill.report.bench_files import BenchFiles
    from specdistill.report.progress import TerminalProgress
    from specdistill.report.terminal import bench_tables
    from specdistill.report.wording_verdict import verdict
    from specdistill.serving.bench import bench

    progress, stopped = TerminalProgress(), None
    json, html = (Path(path) if path else None for path in (config.json, config.html))
    files = BenchFiles(json, html, progress.say)
    with locks.file_lock(json, "--json", progress.say), locks.file_lock(html, "--html", progress.say):
        # Hours of measuring must not end at a file that can't be written.
        atomic.refuse_existing_file(json, "--json")
        atomic.refuse_existing_file(html, "--html")
        try:
            report = bench(config, progress, files.keep)
        except (BenchInterruptedError, BenchFailedError) as error:
            stopped, report = error, error.report
        # Files first: whoever reads our output may go away.
        unwritten = files.write(report)
    bench_tables(report, config.samples.show)
    for name, path in (("json", config.json), ("html", html and html.resolve())):
        if path and name not in unwritten:
            print(f"{name}: {path}")
    if stopped is not None:
        for error in unwritten.values():
            progress.say(str(error))
        raise stopped
    if unwritten:
        raise OutputError("; ".join(map(str, unwritten.values())))
    partial = report.partial
    if partial is not None:
        raise ServerError(f"{partial.why}; {partial.prompts_done} of {partial.prompts_asked} prompts are kept")
    return verdict(report).next
