"""Are the decoder's steps as fast as those of another checkout, and do compiled ones pay? A CPU, one thread.

    python benchmarks/decoding/captured_steps.py --before DIR         another checkout against this one, some minutes
    python benchmarks/decoding/captured_steps.py --compiled           compiled steps against eager ones, many minutes

Models have SmolLM2-135M's shape, the draft 4 of its layers, and random weights. Processes take turns: each answers one
prompt plainly and one with the draft. Prints the ratio of the medians and its quartiles over turns; 1.1 means that
the second one takes 1.1 times as long. On a GPU `make gpu` measures captured steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROMPT, NEW, DRAFTED = 96, 24, 4


def work(compiled: bool) -> None:
    """Answers whenever a line comes in, and prints the seconds."""
    sys.path[:0] = [str(Path.cwd()), str(Path.cwd() / "kernels")]
    import torch

    from benchmarks.support.random_models import Shape, random_model, random_prompts
    from specdistill.decoding import Sampling, SpeculativeDecoder, generate_plain

    torch.set_num_threads(1)
    torch.manual_seed(0)
    shapes = [Shape(name, 576, layers, 9, 3, 64, 1536, 49152, tied=True) for name, layers in (("t", 30), ("d", 4))]
    target, draft = (random_model(shape.config(), shape.name) for shape in shapes)
    sampling, prompts = Sampling(temperature=0.0), random_prompts(1, PROMPT, 49152)
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=DRAFTED, sampling=sampling)
    if compiled:
        from specdistill.decoding.captured_steps import CapturedSteps
        from specdistill.decoding.captured_steps import compiled as capture

        target.step_runner, draft.step_runner = CapturedSteps(capture), CapturedSteps(capture)
    while True:
        start = time.perf_counter()
        generate_plain(target, prompts, sampling=sampling, max_new_tokens=NEW, seeds=[0])
        middle = time.perf_counter()
        decoder.generate(prompts, max_new_tokens=NEW, seeds=[0])
        print(json.dumps({"plain": middle - start, "speculative": time.perf_counter() - middle}), flush=True)
        if not sys.stdin.readline():
            return


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A process that works with the code of a checkout, warmed up."""
    command = [sys.executable, __file__, "--worker", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=pipe, text=True, env=environment)
    answer(process)
    return process


def answer(process: subprocess.Popen[str]) -> dict[str, float]:
    """The next seconds that a process prints."""
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout, which comes first")
    parser.add_argument("--compiled", action="store_true", help="compiled steps come second")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options.compiled)
    if (options.before is None) != options.compiled:
        parser.error("give --before DIR or --compiled")
    second = ["--compiled"] if options.compiled else []
    processes = [start(options.before or ROOT), start(ROOT, *second)]
    seconds: list[dict[str, list[float]]] = [{"plain": [], "speculative": []} for _ in processes]
    for turn in range(options.turns):
        for place in (0, 1) if turn % 2 else (1, 0):
            process = processes[place]
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            for name, value in answer(process).items():
                seconds[place][name].append(value)
    for process in processes:
        process.communicate()
    for name in ("plain", "speculative"):
        first, other = (each[name] for each in seconds)
        low, middle, high = statistics.quantiles([b / a for a, b in zip(first, other, strict=True)], n=4)
        row = {"decoding": name, "first_s": statistics.median(first), "second_s": statistics.median(other)}
        print(json.dumps(row | {"ratio": middle, "quartiles": [low, high]}), flush=True)


if __name__ == "__main__":
    main()
