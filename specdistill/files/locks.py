"""One run per output: a lock on a file, which the operating system releases however the run ends, kill -9 included."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from specdistill.errors import OutputError
from specdistill.files import atomic


class BusyError(OutputError):
    """Another run holds the lock."""


_BUSY = {errno.EWOULDBLOCK, errno.EAGAIN}


@contextlib.contextmanager
def output_lock(output: Path, say: Callable[[str], None], *, wanted: bool = True) -> Iterator[None]:
    """Holds an output directory for the life of a command. A directory that is missing is made.

    A directory that was made here and is still empty at the end goes again: nothing was written then.

    Args:
        output: The directory.
        say: Called with a warning where the file system has no locks.
        wanted: Whether this process takes the lock: one rank or driver does for all of its run.

    Raises:
        OutputError: Another run holds it, or it can't be written.
    """
    if not wanted:
        yield
        return
    with atomic.output_errors(output):
        if output.exists() and not output.is_dir():
            raise OutputError(f"{output} is a file; --output must name a directory")
    with _held(output / atomic.LOCK_FILE, f"{output} is in use by another run", "--output", say):
        yield


@contextlib.contextmanager
def file_lock(path: Path | None, flag: str, say: Callable[[str], None]) -> Iterator[None]:
    """Holds the name of a file that is written later.

    Args:
        path: The file; None holds nothing.
        flag: Flag that names it, for the message.
        say: See `output_lock`.

    Raises:
        OutputError: Another run holds it, or its folder can't be written.
    """
    if path is None:
        yield
        return
    with atomic.output_errors(path):
        if path.is_dir():
            raise OutputError(f"{path} is a directory; {flag} must name a file")
    with _held(path.with_name(f".{path.name}.lock"), f"{path} is being written by another run", flag, say):
        yield


@contextlib.contextmanager
def _held(lock: Path, busy: str, flag: str, say: Callable[[str], None]) -> Iterator[None]:
    missing = [folder for folder in (lock.parent, *lock.parent.parents) if not folder.exists()]
    try:
        with atomic.output_errors(lock.parent):
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = _take(lock, busy, flag, say)
        try:
            yield
        finally:
            # Removed while it is held: whoever opened it meanwhile sees that it is no longer the one of this name.
            # Nor may a folder that was removed or turned read-only meanwhile cost what the block is about to print.
            with contextlib.suppress(OSError):
                lock.unlink(missing_ok=True)
            os.close(descriptor)
    finally:
        for folder in missing:
            # Refused by the operating system where something was written.
            with contextlib.suppress(OSError):
                folder.rmdir()


def _take(lock: Path, busy: str, flag: str, say: Callable[[str], None]) -> int:
    """Opens and locks the file; its descriptor."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _lock(descriptor):
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "unknown process"
                raise BusyError(f"{busy} ({holder}); wait until it ends, stop it, or choose another {flag}")
            if _is_named(descriptor, lock):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
                return descriptor
        except _NoLocksError as error:
            say(f"warning: {lock.parent}: this file system has no locks ({error}); start no other run on this output")
            return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


class _NoLocksError(Exception):
    """The file system, or the operating system, has no locks."""


def _lock(descriptor: int) -> bool:
    """Locks an open file without waiting; False where another process has it."""
    try:
        import fcntl
    except ImportError as error:
        raise _NoLocksError("no fcntl") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        raise _NoLocksError(error.strerror) from error
    return True


def _is_named(descriptor: int, lock: Path) -> bool:
    """Whether the open file still has its name; the run before may just have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(lock))
    except FileNotFoundError:
        return False
