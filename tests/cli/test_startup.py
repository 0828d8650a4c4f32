"""Starting is fast: heavy imports wait until they are needed. Limits are the issue's, medians of several starts."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import pytest

from specdistill import __all__ as public_names


def seconds(*arguments: str) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


CLI = ("-c", "import sys; from specdistill.cli import main; sys.exit(main(sys.argv[1:]))")


@pytest.mark.alone
def test_import_and_help_are_fast():
    assert seconds("-c", "import specdistill") < 0.2
    assert seconds(*CLI, "--help") < 0.5


@pytest.mark.alone
def test_kernels_add_next_to_nothing_to_torch():
    """A serving stack imports them at its start: under 1.5 s, nearly all of which is torch's own."""
    ours, torch = seconds("-c", "import specdistill_kernels"), seconds("-c", "import torch")
    assert ours < torch + 0.3


COMMANDS = ("plan", "advise", "init-draft", "generate", "annotate", "train-draft", "bench", "check", "carry-head")
COMMANDS += ("export",)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_loads_no_torch_and_documents_every_flag(command):
    code = (
        "import sys, io, contextlib; from specdistill.cli import main; out = io.StringIO()\n"
        f"with contextlib.redirect_stdout(out): main(['{command}', '--help'])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'triton'} & set(sys.modules)\n"
        "assert not heavy, heavy\nprint(out.getvalue())"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "--target" in shown and "--no-" not in shown and "--empty-" not in shown


@pytest.mark.parametrize(
    ("command", "first"),
    [("train-draft --output o --draft d", "target-"), ("generate --output o", "target-"), ("bench --draft d", "exact")],
)
def test_a_misspelled_scorer_is_refused_before_torch_is_loaded(command, first):
    code = (
        "import sys; from specdistill.cli import main\n"
        f"assert main([*'{command}'.split(), '--target', 't', '--scorer', 'exactmatch']) == 2\n"
        "heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules)\nassert not heavy, heavy"
    )
    run = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert run.returncode == 0 and f"unknown --scorer 'exactmatch'; choose {first}" in run.stderr, run.stderr


def test_every_public_name_resolves():
    code = "import specdistill\nfor name in specdistill.__all__: getattr(specdistill, name)\n"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert public_names == sorted(public_names, key=lambda name: (not name[0].isupper(), name))


def test_unknown_names_are_attribute_errors():
    import specdistill

    with pytest.raises(AttributeError, match="no attribute 'train'"):
        specdistill.train  # noqa: B018


def test_version_and_bare_command(capsys):
    from specdistill.cli import main

    assert main(["--version"]) == 0 and "0.1.0" in capsys.readouterr().out
    assert main([]) == 0 and "train-draft" in capsys.readouterr().out
