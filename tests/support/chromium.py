"""Real Chromium, driven by its DevTools protocol over a pipe: no package and no port is needed.

A page is opened in a window of some size, light or dark. What it prints to the console and what it requests is kept.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_PATIENCE = 90.0


class Tab:
    """One page."""

    def __init__(self, send, session: str) -> None:
        self._send, self._session = send, session
        self.requests: list[str] = []
        """Addresses that were asked for."""
        self.complaints: list[str] = []
        """Lines on the console, and errors."""

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command of the protocol and returns its result."""
        return self._send(method, parameters, self._session)

    def open(self, page: Path, width: int, dark: bool) -> None:
        """Loads a file in a window of this width."""
        self.requests.clear()
        self.complaints.clear()
        self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self.command("Page.navigate", url=page.as_uri())
        deadline = time.monotonic() + _PATIENCE
        while self.evaluate("document.readyState + location.href") != "complete" + page.as_uri():
            assert time.monotonic() < deadline, "the page was not loaded"
            time.sleep(0.02)

    def evaluate(self, expression: str) -> Any:
        """Value of a JavaScript expression in the page."""
        result = self.command("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Writes the whole page as a PNG."""
        shot = self.command("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def notice(self, event: dict[str, Any]) -> None:
        """Takes an event of the page."""
        parameters, method = event["params"], event["method"]
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(json.dumps(parameters))


@contextmanager
def chromium_tab(folder: Path) -> Iterator[Tab]:
    """Starts Chromium and yields a tab.

    Args:
        folder: Empty folder for its profile.
    """
    assert CHROMIUM is not None
    down, up = os.pipe(), os.pipe()
    # Chromium reads commands from descriptor 3 and writes to 4; bash puts ours there.
    script = f'exec "$@" 3<&{down[0]} 4>&{up[1]}'
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    flags += ["--disable-background-networking", "--hide-scrollbars", f"--user-data-dir={folder}"]
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", CHROMIUM, *flags, "--remote-debugging-pipe", "about:blank"],
        pass_fds=(down[0], up[1]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(down[0])
    os.close(up[1])
    try:
        send = _Protocol(up[0], down[1])
        target = send("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        tab = send.tab = Tab(send, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.command(f"{domain}.enable")
        yield tab
        # Its helpers write to the profile until it has ended in order.
        send("Browser.close", {})
        process.wait(30)
    finally:
        process.kill()
        process.wait()
        os.close(down[1])
        os.close(up[0])


class _Protocol:
    """Messages in JSON, each with a zero byte behind it."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._number, self._rest = 0, b""
        self.tab: Tab | None = None

    def __call__(self, method: str, parameters: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer}"
                return answer["result"]
            if self.tab is not None and "method" in answer:
                self.tab.notice(answer)

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + _PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._reading], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "Chromium does not answer"
            read = os.read(self._reading, 1 << 20)
            assert read, "Chromium ended"
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)
