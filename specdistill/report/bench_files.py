"""The JSON and the page of a bench, written while it runs and at its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from specdistill.errors import OutputError
from specdistill.evaluation.report import Report
from specdistill.files import atomic
from specdistill.report.html import html_report
from specdistill.report.json_file import json_text


class BenchFiles:
    """Writes the files of --json and --html.

    Args:
        json, html: The files; None writes none.
        say: Where it is said that a file can't be written while the bench goes on.
    """

    def __init__(self, json: Path | None, html: Path | None, say: Callable[[str], None]) -> None:
        self.json, self.html, self._say = json, html, say
        self._said: set[str] = set()

    def keep(self, report: Report) -> None:
        """Writes the report so far. What can't be written is said once, and the bench goes on.

        Args:
            report: The report, marked as partial.
        """
        for path, error in self.write(report).items():
            if path not in self._said:
                self._said.add(path)
                self._say(f"{error}; the bench goes on, and prints its tables at the end")

    def write(self, report: Report) -> dict[str, OutputError]:
        """Writes what can be written.

        Args:
            report: The report.

        Returns:
            Kind of each file that could not be written -> its error.
        """
        errors = {}
        for kind, path, text in (("json", self.json, json_text), ("html", self.html, html_report)):
            if path is not None:
                try:
                    atomic.write_text(path, text(report))
                except OutputError as error:
                    errors[kind] = error
        return errors
