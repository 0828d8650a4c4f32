"""The JSON and the page of a bench, written while it runs and at its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from specdistill.errors import OutputError
from specdistill.evaluation.advice import Advice
from specdistill.evaluation.report import Report
from specdistill.files import atomic
from specdistill.report.html import html_report
from specdistill.report.json_file import json_text


class BenchFiles:
    """Writes the files of --json and --html, of a bench or of `advise`, which has no page.

    Args:
        json, html: The files; None writes none.
        say: Where it is said that a file can't be written while the bench goes on.
    """

    def __init__(self, json: Path | None, html: Path | None, say: Callable[[str], None]) -> None:
        self.json, self.html, self._say = json, html, say
        self._said: set[str] = set()

    def keep(self, report: Report | Advice) -> None:
        """Writes the report so far. What can't be written is said once, and the bench goes on.

        Args:
            report: The report, marked as partial.
        """
        for path, error in self.write(report).items():
            if path not in self._said:
                self._said.add(path)
                self._say(f"{error}; the work goes on, and its tables are printed at the end")

    def write(self, report: Report | Advice) -> dict[str, OutputError]:
        """Writes what can be written.

        Args:
            report: The report.

        Returns:
            Kind of each file that could not be written -> its error.
        """
        errors = {}
        texts = {"json": (self.json, lambda: json_text(report))}
        if isinstance(report, Report):
            texts["html"] = self.html, lambda: html_report(report)
        for kind, (path, text) in texts.items():
            if path is not None:
                try:
                    atomic.write_text(path, text())
                except OutputError as error:
                    errors[kind] = error
        return errors
