"""Flags of every command, read from the command line's own parser.

    python tests/support/flag_table.py > tests/cli/flags.json

The committed table was written at 774373b, before settings were put in parts; write it again when a flag is added.
"""

from __future__ import annotations

import inspect
import json
import sys
import typing
from typing import Any

from cyclopts import App, Parameter

FlagTable = dict[str, dict[str, dict[str, Any]]]


def flag_table(app: App) -> FlagTable:
    """command -> flag -> its `default` (absent where it is required), and `choices` where only some are allowed."""
    shared = app.default_parameter
    return {name: _flags(app[name], shared) for name in sorted(app) if not name.startswith("-")}


def _flags(command: App, shared: Parameter | None) -> dict[str, dict[str, Any]]:
    flags: dict[str, dict[str, Any]] = {}
    for argument in command.assemble_argument_collection(default_parameter=shared, parse_docstring=True):
        for name in argument.names:
            if not name.startswith("--"):
                continue
            entry: dict[str, Any] = {}
            default = argument.field_info.default
            if default is not inspect.Parameter.empty:
                entry["default"] = list(default) if isinstance(default, tuple) else default
            choices = typing.get_args(argument.hint) if typing.get_origin(argument.hint) is typing.Literal else ()
            if choices:
                entry["choices"] = list(choices)
            flags[name] = entry
    return flags


if __name__ == "__main__":
    from specdistill.cli import app

    json.dump(flag_table(app), sys.stdout, indent=1, sort_keys=True)
    sys.stdout.write("\n")
