"""Plants an error into one file of the package, in memory, and asks a test whether it sees it.

`tests/distill/wiring/planted_errors.json` lists the errors: a wire, the file, the text that is replaced, and the test
that must fail. Each error runs in a process of its own, forked after the heavy imports.

    python tests/support/planted_errors.py            # all of them; exit code 1 where one is missed
    python tests/support/planted_errors.py lmbda      # those whose wire holds the word
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import json
import linecache
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "tests" / "distill" / "wiring" / "planted_errors.json"


@dataclass(frozen=True)
class PlantedError:
    """A wrong wire, and who must notice."""

    wire: str
    """The wire that is broken, in words."""
    file: str
    """File of the package, from the repository's root."""
    old: str
    """Text that the file holds exactly once."""
    new: str
    """The error."""
    test: str
    """Test that must fail: pytest's id, from the folder of the table."""

    @property
    def module(self) -> str:
        """Dotted name of the file's module."""
        path = self.file.removeprefix("kernels/").removesuffix(".py").removesuffix("/__init__")
        return path.replace("/", ".")

    def spoiled(self) -> str:
        """Text of the file with the error.

        Raises:
            ValueError: The file doesn't hold the old text once; the table has to follow the code.
        """
        text = (ROOT / self.file).read_text()
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file} holds {text.count(self.old)} times, not once: {self.old!r} ({self.wire})")
        return text.replace(self.old, self.new)


def read_table() -> list[PlantedError]:
    """All planted errors."""
    return [PlantedError(**row) for row in json.loads(TABLE.read_text())]


class _Spoiled(importlib.machinery.SourceFileLoader):
    """Loads a module from another text than its file's."""

    def __init__(self, name: str, path: str, text: str) -> None:
        super().__init__(name, path)
        self._text = text

    def get_data(self, path: str) -> bytes:
        return self._text.encode()

    def path_stats(self, path: str):
        # Without a time no byte code is read or written.
        raise OSError


class _Finder:
    """Finds the spoiled module before anybody else does."""

    def __init__(self, error: PlantedError) -> None:
        self._error, self._text = error, error.spoiled()

    def find_spec(self, name: str, path=None, target=None):
        if name != self._error.module:
            return None
        file = str(ROOT / self._error.file)
        # Triton reads the source of kernels there; without a time it is not compared with the file.
        linecache.cache[file] = (len(self._text), None, self._text.splitlines(keepends=True), file)
        return importlib.util.spec_from_file_location(name, file, loader=_Spoiled(name, file, self._text))


def is_caught(error: PlantedError) -> tuple[bool, str]:
    """Whether the test fails with the error, and its output; the error must not stop the test from being collected."""
    import pytest

    finder = _Finder(error)
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if child == 0:
            code = 99
            with contextlib.suppress(BaseException):
                for stream in (1, 2):
                    os.dup2(output.fileno(), stream)
                sys.meta_path.insert(0, finder)  # pyright: ignore[reportArgumentType]
                os.chdir(ROOT)
                arguments = ["-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", "--tb=line"]
                code = int(pytest.main([str(TABLE.parent / error.test), *arguments]))
                sys.stdout.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status) == 1, output.read()


def heavy_imports() -> None:
    """Imports what every test needs but the package itself, once for all children."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRITON_INTERPRET", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    names = ("torch", "transformers", "transformers.modeling_utils", "transformers.trainer_callback", "accelerate")
    models = "transformers.models.llama.modeling_llama"
    for name in (*names, models, "scipy.stats", "pyarrow.parquet", "safetensors.torch", "cyclopts", "pytest"):
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)


def check(errors: list[PlantedError]) -> Iterator[tuple[PlantedError, bool, str]]:
    """Each error, whether it was caught, and what the test said."""
    heavy_imports()
    for error in errors:
        yield error, *is_caught(error)


def main(words: list[str]) -> int:
    """Prints a line per error; the exit code is 1 where one was missed."""
    chosen = [error for error in read_table() if all(word in error.wire for word in words)]
    missed = 0
    for error, caught, said in check(chosen):
        missed += not caught
        print(f"{'caught' if caught else 'MISSED'}  {error.wire}  ({error.test})", flush=True)
        if not caught:
            print(said[-1500:], flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} planted errors caught")
    return int(missed > 0)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.path.insert(0, str(ROOT / "kernels"))
    sys.exit(main(sys.argv[1:]))
