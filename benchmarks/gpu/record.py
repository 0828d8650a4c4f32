"""The JSON of one part: written again after every row, so that a run which is cut off leaves what it has measured."""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import json
import subprocess
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.support.paths import ROOT
from specdistill.files import atomic

LIBRARIES = ("torch", "triton", "transformers", "liger-kernel", "trl", "vllm")
MEASURED_CODE = ("specdistill", "kernels/specdistill_kernels", "benchmarks/gpu", "benchmarks/ops", "benchmarks/support")


def source_hash() -> str:
    """Hash of the code that is measured and of the code that measures."""
    digest = hashlib.sha256()
    for folder in MEASURED_CODE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _first_line(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else None


def card(dry: bool) -> str:
    """Name of the GPU. The driver is asked first, so that no CUDA context is made."""
    if dry:
        return "cpu"
    named = _first_line("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    if named is None:
        import torch

        named = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return named


def machine(dry: bool) -> dict[str, Any]:
    """Card, driver, versions and code that the numbers hold for."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    driver = None if dry else _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    commit = _first_line("git", "rev-parse", "HEAD")
    return {"device": card(dry), "driver": driver, **versions, "commit": commit, "source": source_hash()}


def is_done(path: Path, dry: bool) -> bool:
    """Whether a part was measured to its end, on this card and with this code, and nothing in it failed."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    wanted = {"device": card(dry), "source": source_hash(), "complete": True, "failures": 0}
    return all(found.get(name) == value for name, value in wanted.items())


class Record:
    """Rows of one part, by section.

    Args:
        path: The part's file.
        device: `cuda`, or `cpu` in a dry run.
        vllm: Folder of vLLM's package, for its Triton files.
        limit: Seconds after which the part's process is ended.
    """

    def __init__(self, path: Path, device: str, vllm: Path | None = None, limit: int = 480) -> None:
        self._path, self.device, self.vllm, self._limit = path, device, vllm, limit
        self._start = time.perf_counter()
        self._content: dict[str, Any] = machine(device == "cpu") | {"complete": False, "failures": 0, "seconds": 0.0}
        self._write()

    @property
    def dry(self) -> bool:
        """Whether this is a walk on a CPU with tiny sizes."""
        return self.device == "cpu"

    @property
    def seconds_left(self) -> float:
        """Seconds until the part's process is ended."""
        return self._limit - (time.perf_counter() - self._start)

    @property
    def failures(self) -> int:
        """Rows that failed so far, and errors of the part as a whole."""
        return self._content["failures"]

    def set(self, name: str, value: Any) -> None:
        """Writes one value."""
        self._content[name] = value
        self._write()

    def attempt(self, section: str, row: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> None:
        """Adds a row and writes the file. An error becomes the row's content, and the next row goes on.

        Args:
            section: Name of the list that the row belongs to.
            row: Says which row it is.
            measure: Gives the rest of the row.
        """
        start = time.perf_counter()
        try:
            row = row | measure()
        except Exception:
            row = row | {"error": traceback.format_exc()[-3000:]}
            self._content["failures"] += 1
        row["row_seconds"] = round(time.perf_counter() - start, 1)
        self._content.setdefault(section, []).append(row)
        self._write()
        print(section, json.dumps(row), flush=True)
        self.free()

    def failed(self, reason: str) -> None:
        """Notes an error of the part as a whole."""
        self._content["failures"] += 1
        self.set("error", reason)

    def finish(self) -> None:
        """Says that every row was tried."""
        self.set("complete", True)

    def free(self) -> None:
        """Gives unused GPU memory back, so that rows don't meet each other's."""
        gc.collect()
        if not self.dry:
            import torch

            torch.cuda.empty_cache()

    def _write(self) -> None:
        self._content["seconds"] = round(time.perf_counter() - self._start, 1)
        atomic.write_text(self._path, json.dumps(self._content, indent=1) + "\n")


def stopped(path: Path, reason: str) -> None:
    """Notes in a part's file why its process ended before it could say so itself."""
    content = json.loads(path.read_text()) if path.is_file() else machine(dry=False) | {"complete": False}
    content |= {"error": reason, "failures": content.get("failures", 0) + 1}
    atomic.write_text(path, json.dumps(content, indent=1) + "\n")
