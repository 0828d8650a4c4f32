"""Every command of the tool on tiny random models on the card, one after the other, as a user would type them."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.record import Record
from benchmarks.support.paths import TEST_SUPPORT
from specdistill.cli import main

sys.path.insert(0, str(TEST_SUPPORT))
import tiny_runs

PAIR = "--target {folder}/target --draft {folder}/draft --prompts {folder}/prompts.jsonl --device {device}"
TARGET = "--target {folder}/target --prompts {folder}/prompts.jsonl --device {device}"
LABEL = "annotate --target {folder}/target --device {device}"
TRAIN = f"train-draft {PAIR} --steps 4 --eval-every 2 --heldout-prompts 6 --max-new-tokens 12 --batch-size 4"
BENCH = f"bench {PAIR} --num-prompts 12 --max-new-tokens 12 --json {{folder}}/bench.json"
COMMANDS = (
    f"init-draft {TARGET} --output {{folder}}/cut --layers 2 --calibration-tokens 8",
    f"generate {TARGET} --output {{folder}}/answers --max-new-tokens 12",
    f"{LABEL} --rollouts {{folder}}/answers --output {{folder}}/labels --top-k 8",
    f"{TRAIN} --output {{folder}}/distillspec --method distillspec",
    f"{TRAIN} --output {{folder}}/gkd --method gkd --precision bfloat16 --micro-batch-size 2 --gradient-checkpointing",
    f"{TRAIN} --output {{folder}}/skd --method skd --precision bfloat16",
    f"{TRAIN} --output {{folder}}/labelled --method supervised-kd --soft-labels {{folder}}/labels",
    f"{TRAIN} --output {{folder}}/offloaded --method seqkd --target-memory offloaded --dtype float32",
    f"{BENCH} --temperature 0 --dtype float32",
    f"{BENCH} --temperature 0 --batch-size 4 --num-draft-tokens 3",
    f"{BENCH} --temperature 1 --rule block",
    f"{BENCH} --temperature 1 --rule argmax_draft --batch-size 4",
)
IN_A_DRY_RUN = (1, 2, 4, 5, 6, 9)
"""Places of the commands that a dry run takes; the others have tests of their own on a CPU."""


def run(line: str, folder: Path) -> dict[str, Any]:
    """Runs one command in this process, and reads what `bench` found.

    Raises:
        AssertionError: It failed, or greedy answers in float32 are not the target's own.
    """
    out, bench = io.StringIO(), folder / "bench.json"
    bench.unlink(missing_ok=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main(shlex.split(line))
    assert code == 0, f"exit code {code}\n{out.getvalue()[-2000:]}"
    if not bench.is_file():
        return {}
    lossless = json.loads(bench.read_text())["lossless"]
    exact = "--temperature 0" not in line or "--dtype float32" not in line or lossless["greedy_identical"]
    assert exact, f"greedy answers differ: {lossless}"
    return {"lossless": lossless}


def measure(record: Record) -> None:
    """A row per command."""
    with tempfile.TemporaryDirectory() as name:
        folder = tiny_runs.write_folder(Path(name), tiny_runs.standard_models())
        for number, command in enumerate(COMMANDS):
            if record.dry and number not in IN_A_DRY_RUN:
                continue
            line = command.format(folder=folder, device=record.device)
            row = {"command": command.replace("{folder}/", "").format(device=record.device)}
            record.attempt("commands", row, lambda line=line, folder=folder: run(line, folder))
