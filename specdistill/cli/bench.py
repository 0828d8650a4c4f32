"""`specdistill bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from specdistill.serving.bench_config import BenchConfig


def command(config: Annotated[BenchConfig, Parameter(name="*")]) -> None:
    """Measure what a draft is worth: acceptance under every rule, speed against the plain target, and a verdict."""
    from specdistill.errors import ServerError
    from specdistill.files import atomic
    from specdistill.report.html import html_report
    from specdistill.report.json_file import json_text
    from specdistill.report.progress import TerminalProgress
    from specdistill.report.terminal import bench_tables
    from specdistill.serving.bench import bench

    # Hours of measuring must not end at a file that can't be written.
    for path, flag in ((config.json, "--json"), (config.html, "--html")):
        atomic.refuse_existing_file(Path(path) if path else None, flag)
    report = bench(config, TerminalProgress())
    bench_tables(report)
    if config.json:
        atomic.write_text(Path(config.json), json_text(report))
        print(f"json: {config.json}")
    if config.html:
        atomic.write_text(Path(config.html), html_report(report))
        print(f"html: {Path(config.html).resolve()}")
    partial = report.partial
    if partial is not None:
        raise ServerError(f"{partial.why}; {partial.prompts_done} of {partial.prompts_asked} prompts are kept")
