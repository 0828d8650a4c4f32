"""A server that is started for a measurement, and stopped after it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from specdistill.errors import ServerError

_GRACE = 10.0


class ServerProcess:
    """A child with a process group of its own, whose output goes to a file.

    Args:
        name: For messages.
        command: Program and arguments.
        environment: Variables added to ours.
    """

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.name = name
        handle, log = tempfile.mkstemp(prefix="specdistill-server-", suffix=".log")
        self.log = Path(log)
        try:
            with os.fdopen(handle, "wb") as file:
                self._child = subprocess.Popen(
                    list(command),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env=os.environ | (environment or {}),
                    # Engines start children of their own; all of them must go.
                    start_new_session=True,
                )
        except OSError as error:
            self.log.unlink()
            raise ServerError(f"can't start {name}: {error.strerror} ({command[0]})") from error

    def wait_until_ready(self, url: str, timeout: float) -> None:
        """Returns once the server answers /health with success.

        Raises:
            ServerError: It ended, or did not get so far in time; the last words of its log are quoted.
        """
        import httpx2

        end = time.monotonic() + timeout
        while True:
            self.check_alive()
            with contextlib.suppress(httpx2.TransportError):
                # The server is on this machine: no proxy of the environment may come between.
                if httpx2.get(url + "/health", timeout=5.0, trust_env=False).is_success:
                    return
            if time.monotonic() > end:
                raise ServerError(
                    f"{self.name} does not answer after {timeout:.0f} s; raise --server-timeout, or see {self.log}"
                )
            time.sleep(0.25)

    def check_alive(self, grace: float = 0.0) -> None:
        """Checks that the process still runs; needs no network.

        Args:
            grace: Seconds to wait for its end: connections of a dying process break before it is gone.

        Raises:
            ServerError: The process has ended.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(grace)
        code = self._child.poll()
        if code is not None:
            raise ServerError(f"{self.name} ended with code {code}: {self._last_words()} (its log: {self.log})")

    def stop(self) -> None:
        """Ends the process group: by SIGTERM, then by SIGKILL. The log of a server that still ran is removed."""
        ended_by_itself = self._child.poll() is not None
        for sent in (signal.SIGTERM, signal.SIGKILL):
            # The second reaches children that outlived their parent, too.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, sent)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(_GRACE)
        if not ended_by_itself:
            self.log.unlink(missing_ok=True)

    def _last_words(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        telling = [line for line in lines if "error" in line.lower()]
        return (telling or lines or ["it said nothing"])[-1][-300:]


def free_port() -> int:
    """Finds a port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
