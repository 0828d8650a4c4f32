"""Atomic writes: a crash, a full disk or Ctrl-C never leaves a half-written file under its final name."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from specdistill.errors import OutputError

LOCK_FILE = ".specdistill.lock"
"""File in an output directory that a run holds a lock on; one that a kill leaves behind is no result."""


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to a temporary file, syncs it and renames it to `path`.

    Raises:
        OutputError: The disk is full, or the folder can't be written. An older file is then intact.
    """

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_with(path, write)


def write_text(path: Path, content: str) -> None:
    """Writes `content` as UTF-8; see `write_bytes`."""
    write_bytes(path, content.encode())


def write_with(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` fill a temporary file in the same folder, then renames it to `path`.

    Args:
        path: The final name.
        write: Called with the name of the temporary file.

    Raises:
        OutputError: The disk is full, or the folder can't be written. An older file is then intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_directory(path: Path, *, is_result: bool = False) -> Iterator[Path]:
    """Yields a temporary folder that becomes `path` when the block ends without an error.

    If another process has made `path` in the meantime, that folder is kept and the new one is removed.

    Args:
        path: The final name. An empty folder of that name is replaced.
        is_result: Whether it is an error that another process has made `path`: its content is not the same.

    Raises:
        OutputError: The disk is full, or the parent folder can't be written, or a result's name is taken.
    """
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield temporary
            for file in temporary.iterdir():
                sync(file)
            # mkdtemp makes private folders; a result gets the permissions of any new folder.
            temporary.chmod(0o777 & ~umask())
            if not path.exists() or (path.is_dir() and not any(path.iterdir())):
                os.rename(temporary, path)
                sync(path.parent)
            elif is_result:
                raise OutputError(f"{path} was written by another run meanwhile; choose another --output")
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def claim_output_directory(
    path: Path, remedy: str = "choose another --output, or move the old result away first"
) -> None:
    """Makes the directory `path` and checks that it can be written, before any expensive work starts.

    Args:
        path: The directory.
        remedy: Ends the message where it already holds files.

    Raises:
        OutputError: `path` already holds files, is a file, or can't be written.
    """
    if path.is_dir() and any(file.name != LOCK_FILE for file in path.iterdir()):
        raise OutputError(f"{path} already holds files; {remedy}")
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file; --output must name a directory")
    with output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        _probe(path / ".write-probe")


def check_new_directory(path: Path) -> None:
    """Checks that `new_directory` can make `path`, before any expensive work starts; makes nothing.

    Raises:
        OutputError: `path` holds files, is a file, or can't be written.
    """
    with output_errors(path):
        if path.exists() and not path.is_dir():
            raise OutputError(f"{path} is a file; --output must name a directory")
        if path.is_dir() and any(path.iterdir()):
            raise OutputError(f"{path} already holds files; choose another --output, or move the old result away first")
        parent = next(folder for folder in path.absolute().parents if folder.exists())
        _probe(parent / f".{path.name}.write-probe")


@contextmanager
def emptied_on_failure(path: Path) -> Iterator[None]:
    """Removes what the block wrote to a claimed directory if it fails or is interrupted: half a model is none.

    Args:
        path: A directory that `claim_output_directory` found empty.
    """
    try:
        yield
    except BaseException:
        for file in path.iterdir() if path.is_dir() else ():
            if file.is_dir():
                shutil.rmtree(file, ignore_errors=True)
            elif file.name != LOCK_FILE:
                file.unlink(missing_ok=True)
        raise


def refuse_existing_file(path: Path | None, flag: str) -> None:
    """Refuses to overwrite a result.

    Args:
        path: The file to write later; None passes.
        flag: Flag that names the file, for the message.

    Raises:
        OutputError: `path` exists, or its folder can't be made or written.
    """
    if path is None:
        return
    with output_errors(path):
        if path.exists():
            raise OutputError(f"{path} already exists; choose another {flag}, or remove it first")
        path.parent.mkdir(parents=True, exist_ok=True)
        _probe(path.with_name(f".{path.name}.write-probe"))


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turns errors of the operating system inside the block into one line with the remedy.

    safetensors and tokenizers report a full disk by exceptions of their own. Those name the reason in their text only,
    so the text is read too.

    Args:
        path: The file or folder that the block writes, for the message.

    Raises:
        OutputError: The block could not write.
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


def sync(path: Path) -> None:
    """Waits until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def umask() -> int:
    """Permissions that new files of this process don't get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _probe(file: Path) -> None:
    file.touch()
    file.unlink()
