"""The command line: parse -> config -> call -> render. One thin module per command, nothing heavy imported here."""

from __future__ import annotations

import difflib
import io
import os
import re
import sys
from pathlib import Path

from cyclopts import (
    UNSET,
    App,
    ArgumentCollection,
    CycloptsError,
    MissingArgumentError,
    Parameter,
    UnknownOptionError,
    UnusedCliTokensError,
)
from cyclopts.config import Dict

from specdistill import __version__
from specdistill.cli import advise, annotate, bench, carry_head, check, export, generate, init_draft, plan, train_draft
from specdistill.cli.config_file import read_config
from specdistill.cli.list_flags import read_lists
from specdistill.cli.stop_signals import Received, stop_signals
from specdistill.distill.presets import preset_settings
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
_WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")
# In the order of work, which is the order of the help.
_COMMANDS = {
    "plan": plan,
    "advise": advise,
    "init-draft": init_draft,
    "generate": generate,
    "annotate": annotate,
    "train-draft": train_draft,
    "bench": bench,
    "check": check,
    "carry-head": carry_head,
    "export": export,
}
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
        app.config = [*_config_files(arguments), _fill_in_preset, read_lists, _check_whole_numbers]
        tokens = [each for each in arguments if each != "--debug"]
        following = app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        if following:
            print(f"next: {following}")
    except KeyboardInterrupt:
        print(received.line, file=sys.stderr)
        return received.exit_code
    except (CycloptsError, SpecdistillError) as error:
        if debug:
            raise
        print(f"specdistill: {_message(error)}", file=sys.stderr)
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
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            # The operating system refuses a name that the user gave, or a file of it.
            print(f"specdistill: can't use {error.filename}: {error.strerror}", file=sys.stderr)
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


def _message(error: CycloptsError | SpecdistillError) -> str:
    """An error's text in one line."""
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return (
            f"{error.unused_tokens[0]!r} belongs to no flag; write settings as --name value, and quote a value that "
            "holds spaces"
        )
    # With a keyword, the flag is there and its value is missing.
    if isinstance(error, MissingArgumentError) and error.argument is not None and error.keyword is None:
        return f"{error.argument.name} is required"
    if isinstance(error, UnknownOptionError) and error.token.source != "cli":
        name = (error.token.keyword or "").strip("[]")
        known = [each.removeprefix("--") for argument in error.argument_collection for each in argument.names]
        close = difflib.get_close_matches(name.replace("_", "-"), known, 1)
        hint = f"; did you mean {close[0].replace('-', '_')}?" if close else ""
        return f"--config {error.token.source}: this command has no setting {name!r}{hint}"
    return " ".join(str(error).split())


def _config_files(arguments: list[str]) -> list[Dict]:
    """Takes --config FILE out of the arguments.

    Raises:
        ConfigError: The file is missing, or holds no settings.
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
        name = flag.partition("=")[2] if "=" in flag else arguments.pop(index)
        if not name:
            raise ConfigError("--config needs a file name")
        path = Path(name)
        files.append(Dict(read_config(path), source=str(path.absolute()), use_commands_as_keys=False))


def _fill_in_preset(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Sets what --preset stands for where neither a flag nor a file has set it; called with all of these read."""
    given = {argument.name: argument.tokens[0].value for argument in arguments if argument.tokens}
    preset = given.get("--preset")
    if preset is not None:
        values = preset_settings(preset, given.get("--method", "distillspec"))
        Dict(values, source=f"--preset {preset}", use_commands_as_keys=False)(app, commands, arguments)


def _check_whole_numbers(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Refuses what cyclopts would round, or read in another base than ten; called with all flags and files read.

    Raises:
        ConfigError: A setting that takes a whole number has something else.
    """
    for argument in arguments:
        for token in argument.tokens if argument.resolved_hint in (int, tuple[int, ...]) else ():
            # A null in a file has no text, and leaves the default.
            if token.implicit_value is UNSET and not _WHOLE.fullmatch(token.value):
                raise ConfigError(f"{argument.name} must be a whole number, got {token.value}")
