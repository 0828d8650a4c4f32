"""Writing results so that a crash, a full disk or Ctrl-C never leaves a half-written file under its final name."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from specdistill.errors import OutputError


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path` through a temporary file, fsync and rename.

    Raises:
        OutputError: The disk is full, or the folder can't be written; the old file, if any, is intact.
    """

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_with(path, write)


def write_text(path: Path, content: str) -> None:
    """`write_bytes` of UTF-8 text."""
    write_bytes(path, content.encode())


def write_with(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a temporary file beside `path`, then moves it there.

    Raises:
        OutputError: As `write_bytes`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            _fsync(temporary)
            os.replace(temporary, path)
            _fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `path` when the block ends without an error.

    Where `path` has appeared meanwhile (another process was faster), it is kept and the new folder dropped.

    Raises:
        OutputError: As `write_bytes`.
    """
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield temporary
            for file in temporary.iterdir():
                _fsync(file)
            # mkdtemp makes folders private; a result gets the permissions that any new folder would.
            temporary.chmod(0o777 & ~_umask())
            if not path.exists():
                os.rename(temporary, path)
                _fsync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def claim_output_directory(path: Path) -> None:
    """Makes `path` and proves that it can be written, before any expensive work starts.

    Raises:
        OutputError: It already holds files, is a file, or can't be written.
    """
    if path.is_dir() and any(path.iterdir()):
        raise OutputError(f"{path} already holds files; choose another --output, or move the old result away first")
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file; --output must name a directory")
    with output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".write-probe"
        probe.touch()
        probe.unlink()


def refuse_existing_file(path: Path | None, flag: str) -> None:
    """Refuses to overwrite a result silently.

    Raises:
        OutputError: `path` exists, or its folder is missing or read-only.
    """
    if path is None:
        return
    if path.exists():
        raise OutputError(f"{path} already exists; choose another {flag}, or remove it first")
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{path.name}.write-probe")
        probe.touch()
        probe.unlink()


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """EpochSampler what the operating system says of `path` into one line with the remedy.

    safetensors and tokenizers report a full disk as their own exception types with the errno in the text only, so the
    text is read as well.
    """
    try:
        yield
    except OutputError:
        raise
    except Exception as error:
        code = getattr(error, "errno", None)
        text = str(error).lower()
        if code == errno.ENOSPC or "no space left" in text:
            raise OutputError(f"disk full while writing {path}; free some space and run again") from error
        if code in (errno.EACCES, errno.EPERM, errno.EROFS) or "read-only file system" in text:
            raise OutputError(f"can't write {path}: {error}; choose a folder that you may write to") from error
        if isinstance(error, OSError):
            raise OutputError(f"can't write {path}: {error}") from error
        raise


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
