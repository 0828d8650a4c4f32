"""The command line: parse -> config -> call -> render. One thin module per command, nothing heavy imported here."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Dict

from specdistill import __version__
from specdistill.cli import annotate, bench, check, export, generate, init_draft, plan, train_draft
from specdistill.cli.stop_signals import Received, stop_signals
from specdistill.errors import ConfigError, SpecdistillError, is_out_of_memory

app = App(
    name="specdistill",
    help=(
        "Train the draft model of speculative decoding, measure what it is worth, ship it.\n\n"
        "Every command also reads its settings from a file: --config FILE.yaml (flags win over the file). "
        "--debug shows tracebacks."
    ),
    version=__version__,
    # One spelling per flag: no --no-x and --empty-x twins.
    default_parameter=Parameter(negative=()),
    # Else cyclopts ends the process on Ctrl-C, before `main` can say so.
    suppress_keyboard_interrupt=False,
)
# In the order of work, which is the order of the help.
_COMMANDS = {
    "plan": plan,
    "init-draft": init_draft,
    "generate": generate,
    "annotate": annotate,
    "train-draft": train_draft,
    "bench": bench,
    "check": check,
    "export": export,
}
_MAPPINGS = ("chat_template_kwargs", "chat-template-kwargs")
"""The settings whose value is a mapping; all others are flat."""
for _position, (_name, _module) in enumerate(_COMMANDS.items()):
    app.command(_module.command, name=_name, sort_key=_position)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; the exit code is 0, 2 for bad input or a failed run, 130 for Ctrl-C, 143 for SIGTERM."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding lacks must not end a run whose results are about to be printed.
        sys.stdout.reconfigure(errors="backslashreplace")
    with stop_signals() as received:
        return _run(list(sys.argv[1:] if arguments is None else arguments), received)


def _run(arguments: list[str], received: Received) -> int:
    debug = "--debug" in arguments
    try:
        app.config = _config_files(arguments)
        tokens = [each for each in arguments if each != "--debug"]
        app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    except KeyboardInterrupt:
        print(received.line, file=sys.stderr)
        return received.exit_code
    except (CycloptsError, SpecdistillError) as error:
        if debug:
            raise
        print(f"specdistill: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output went away (`| head`); Python would complain once more while flushing at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        if received:
            # An import that a signal broke off ends in an error of its own.
            print(received.line, file=sys.stderr)
            return received.exit_code
        reason = " ".join(str(error).split()) or type(error).__name__
        if is_out_of_memory(error):
            print("specdistill: out of memory; take smaller models or a machine with more memory", file=sys.stderr)
            return 2
        print(
            f"specdistill: unexpected {type(error).__name__}: {reason} (run again with --debug for the traceback)",
            file=sys.stderr,
        )
        return 2
    finally:
        # The app outlives the call where it is used from Python.
        app.config = ()
    return 0


def _config_files(arguments: list[str]) -> list[Dict]:
    """Takes --config FILE out of the arguments.

    Raises:
        ConfigError: The file is missing, or is no YAML mapping.
    """
    files = []
    while True:
        index = next(
            (i for i, each in enumerate(arguments) if each == "--config" or each.startswith("--config=")), None
        )
        if index is None:
            return files
        flag = arguments.pop(index)
        if "=" not in flag and index >= len(arguments):
            raise ConfigError("--config needs a file name")
        path = Path(flag.partition("=")[2] if "=" in flag else arguments.pop(index))
        files.append(Dict(_read_yaml(path), source=str(path.absolute()), use_commands_as_keys=False))


def _read_yaml(path: Path) -> dict[str, Any]:
    """Reads the settings; refuses what is no flat mapping."""
    import json

    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"can't read --config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path} must hold a mapping of settings, got {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str):
            raise ConfigError(f"--config {path}: {name!r} is no name of a setting; write settings as 'name: value'")
        if isinstance(value, dict) and name in _MAPPINGS:
            # cyclopts would take a mapping for nested flags.
            content[name] = json.dumps(value, default=str)
        elif isinstance(value, dict):
            inner = next(iter(value), "setting")
            raise ConfigError(
                f"--config {path}: settings are flat, but {name} holds a mapping; write '{inner}: ...' at the top level"
            )
    return content
