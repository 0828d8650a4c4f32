"""`make gpu`: what can be proved on one GPU only, in real shapes with random weights; nothing is downloaded.

    python benchmarks/gpu/run.py --output gpu                                everything, at most 8 minutes per part
    python benchmarks/gpu/run.py --output gpu --parts decoder=150 checks     these, one of them with a limit of its own
    python benchmarks/gpu/run.py --output gpu --dry                          a walk through all parts on a CPU

Every part runs in a process of its own and writes DIR/gpu_<part>.json after every row, with the card's name, the
driver, the versions and a hash of the code. A part that is complete there for this card and this code is skipped. A row
that fails holds its traceback, and the next one goes on. A dry run takes tiny models, all in one process: it shows that
every line works, and its numbers mean nothing. The exit code is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gpu.record import Record, card, is_done, stopped

PARTS = {
    "checks": "benchmarks.gpu.checks",
    "decoder": "benchmarks.gpu.decoder",
    "training": "benchmarks.gpu.training",
    "loss": "benchmarks.gpu.loss",
    "prefill": "benchmarks.gpu.prefill",
    "operations": "benchmarks.gpu.operations",
    "trl": "benchmarks.gpu.trl_steps",
}
"""Part -> the module whose `measure(record)` runs it; the order is that of their value."""
LIMIT = 480


def run_part(name: str, output: Path, dry: bool, vllm: Path | None = None, limit: int = LIMIT) -> int:
    """Runs one part in this process; the number of failures."""
    record = Record(part_file(output, name), "cpu" if dry else "cuda", vllm, limit)
    try:
        importlib.import_module(PARTS[name]).measure(record)
        record.finish()
    except Exception:
        # The other parts must have their turn on a machine that is lent for minutes.
        record.failed(traceback.format_exc()[-3000:])
    return record.failures


def part_file(output: Path, name: str) -> Path:
    """The part's results."""
    return output / f"gpu_{name}.json"


def start_part(name: str, limit: int, output: Path, dry: bool, vllm: Path | None) -> bool:
    """Runs one part in a process of its own; whether nothing failed."""
    command = [sys.executable, __file__, "--worker", name, "--limit", str(limit), "--output", str(output)]
    command += (["--dry"] if dry else []) + (["--vllm", str(vllm)] if vllm else [])
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(limit)
        reason = f"the process ended with {code}" if code not in (0, 1) else None
    except subprocess.TimeoutExpired:
        reason, code = f"stopped after {limit} seconds", 1
    finally:
        # Tests that the part started go with it.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if reason:
        stopped(part_file(output, name), reason)
    print(f"==> {name}: {reason or ('ok' if code == 0 else 'something failed, see the file')}", flush=True)
    return code == 0


def parse_limits(words: Sequence[str]) -> dict[str, int]:
    """`decoder=150` or `decoder` -> part and its limit in seconds."""
    limits = {}
    for word in words:
        name, _, seconds = word.partition("=")
        if name not in PARTS or (seconds and not seconds.isdigit()):
            sys.exit(f"--parts {word}: choose from {', '.join(PARTS)}, each with =SECONDS if it has a limit of its own")
        limits[name] = int(seconds or LIMIT)
    return limits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the JSON files")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), metavar="PART[=SECONDS]")
    parser.add_argument("--dry", action="store_true", help="tiny sizes on a CPU")
    parser.add_argument("--vllm", type=Path, help="folder of vLLM's package, for its Triton files")
    parser.add_argument("--worker", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, default=LIMIT, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        failures = run_part(options.worker, options.output, options.dry, options.vllm, options.limit)
        sys.exit(int(failures > 0))
    limits = parse_limits(options.parts)
    if card(options.dry) == "no GPU":
        sys.exit("make gpu needs an NVIDIA GPU; make gpu DRY=1 walks through every part on a CPU")
    options.output.mkdir(parents=True, exist_ok=True)
    wrong = []
    for name, limit in limits.items():
        if is_done(part_file(options.output, name), options.dry):
            print(f"==> {name}: measured already", flush=True)
        elif options.dry:
            wrong += [name] if run_part(name, options.output, dry=True) else []
        elif not start_part(name, limit, options.output, options.dry, options.vllm):
            wrong.append(name)
    if wrong:
        sys.exit(f"not everything worked: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
