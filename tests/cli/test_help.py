"""The help that a person reads: commands in the order of work, a titled box per part, essentials first and few."""

from __future__ import annotations

import re

import pytest

from specdistill.cli import main

ORDER = [
    "plan",
    "advise",
    "init-draft",
    "generate",
    "annotate",
    "train-draft",
    "bench",
    "check",
    "carry-head",
    "export",
]


@pytest.fixture
def show_help(capsys, monkeypatch):
    """Prints the help of a command on a wide terminal; its boxes as (title, flags in it)."""
    monkeypatch.setenv("COLUMNS", "200")

    def boxes(*command: str) -> list[tuple[str, list[str]]]:
        assert main([*command, "--help"]) == 0
        found: list[tuple[str, list[str]]] = []
        for line in capsys.readouterr().out.splitlines():
            title = re.match(r"╭─ (.*?) ─+╮", line)
            if title:
                found.append((title[1], []))
            # Flags, or in the list of commands their names; continued help text is indented further.
            flag = re.match(r"│ {1,4}(?:\*  )?(--[a-z-]+|[a-z-]+) ", line)
            if flag:
                found[-1][1].append(flag[1])
        return found

    return boxes


def test_commands_are_listed_in_the_order_of_work(show_help):
    ((title, commands),) = show_help()
    assert title == "Commands" and [name for name in commands if name in ORDER] == ORDER


@pytest.mark.parametrize("command", ORDER)
def test_a_box_per_part_and_at_most_ten_essentials(show_help, command):
    boxes = show_help(command)
    titles = [title for title, _ in boxes]
    assert titles[0] == "Essentials" and 1 <= len(boxes[0][1]) <= 10
    # A setting outside every part would land in a box of cyclopts' own.
    assert "Parameters" not in titles and len(set(titles)) == len(titles)
    assert "Machine" not in titles[:-1]
