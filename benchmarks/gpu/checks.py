"""Correctness on the card: the kernels' own tests, exact decoding, distributions, and every command on tiny models."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import commands
from benchmarks.gpu.record import Record
from benchmarks.support.paths import ROOT, TEST_SUPPORT
from specdistill.data.prompts import Prompt
from specdistill.decoding import Generation, Sampling, SpeculativeDecoder, generate_plain
from specdistill.evaluation.latency import first_difference
from specdistill.models import LanguageModel

sys.path.insert(0, str(TEST_SUPPORT))
from output_law import endless_pair, exact_law, p_value
from tiny_models import FAMILIES, make_model, perturbed

GREEDY = Sampling(temperature=0.0)
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], [20, 21], [30, 31, 32, 33, 34], [9]]
LARGEST_TIE = 1e-3
"""Two logits of float32 models that are closer than this are a tie; theirs are some units apart."""
WORKERS = 12
OUTCOMES = ("PASSED", "FAILED", "SKIPPED", "ERROR")
SAMPLINGS = (Sampling(), Sampling(temperature=1.3, top_k=6, top_p=0.9))


def moved(model: LanguageModel, device: str, dtype: torch.dtype) -> LanguageModel:
    """The model there, in place."""
    model.model.to(device=device, dtype=dtype)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return model


def greedy(family: str, device: str, dtype: torch.dtype, new: int) -> dict[str, Any]:
    """Greedy speculative answers, and transformers' own, against the plain ones.

    Raises:
        AssertionError: In float32 an answer differs where the target's two best logits are no tie.
    """
    target = moved(make_model(family), device, dtype)
    model: Any = target.model
    draft = perturbed(target, 0.1 if family == "gpt2" else 0.02)
    plain = [generate_plain(target, [p], sampling=GREEDY, max_new_tokens=new, seeds=[0])[0] for p in PROMPTS]
    others: list[tuple[int, Generation]] = []
    for number, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt], device=device)
        written = model.generate(ids, max_new_tokens=new, do_sample=False)
        others.append((number, Generation(token_ids=written[0, len(prompt) :].tolist())))
    accepted = proposed = 0
    for drafted in (1, 3, 8):
        decoder = SpeculativeDecoder(target, draft, num_draft_tokens=drafted, sampling=GREEDY)
        answers = decoder.generate(PROMPTS, max_new_tokens=new, seeds=[0] * len(PROMPTS))
        others += enumerate(answers)
        accepted += sum(entry.accepted for answer in answers for entry in answer.rounds)
        proposed += sum(entry.proposed for answer in answers for entry in answer.rounds)
    gaps = []
    for number, other in others:
        prompt = Prompt(str(number), ())
        difference = first_difference(target, prompt, PROMPTS[number], plain[number], other)
        if difference is not None:
            gaps.append(difference.logit_gap)
    if dtype == torch.float32:
        assert all(gap is not None and gap < LARGEST_TIE for gap in gaps), f"answers differ by logit gaps of {gaps}"
    return {"answers": len(others), "different": len(gaps), "gaps": gaps, "acceptance_rate": accepted / proposed}


def distribution(rule: str, sampling: Sampling, device: str, dry: bool) -> dict[str, Any]:
    """A G-test of three tokens that the whole decoder wrote.

    Raises:
        AssertionError: They don't follow the target's law.
    """
    target, draft = (moved(model, device, torch.float32) for model in endless_pair())
    prompt, vocab = [5, 6, 7], target.vocab_size
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=2, sampling=sampling, rule=rule)
    counts = torch.zeros(vocab**3)
    batch, repeats = 500, 2 if dry else 10
    for repeat in range(repeats):
        seeds = list(range(repeat * batch, (repeat + 1) * batch))
        # Longer than three tokens, so that no round drafts fewer than two.
        for answer in decoder.generate([prompt] * batch, max_new_tokens=6, seeds=seeds):
            a, b, c = answer.token_ids[:3]
            counts[(a * vocab + b) * vocab + c] += 1
    p = p_value(counts, exact_law(target, sampling, prompt).double())
    assert p > 1e-5, f"p = {p}"
    return {"samples": batch * repeats, "p": p}


class KernelTests:
    """pytest over tests/ops, in processes of its own while the other checks run."""

    def __init__(self, dry: bool, folder: Path) -> None:
        tests = ["tests/ops/test_topk_membership.py", "-p", "no:xdist"] if dry else ["tests/ops", "-n", str(WORKERS)]
        command = [sys.executable, "-m", "pytest", "-v", "--tb=line", "-p", "no:cacheprovider", *tests]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        self._path = folder / "log"
        with self._path.open("w") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def result(self, seconds: float) -> dict[str, Any]:
        """Counts, and the failures.

        Args:
            seconds: How long to wait at most.

        Raises:
            AssertionError: A test failed, or they were not done in time; it says how many were.
        """
        try:
            self._process.wait(max(1.0, seconds))
            stopped = ""
        except subprocess.TimeoutExpired:
            stopped = "stopped for want of time; "
            self._process.kill()
            self._process.wait()
        text = self._path.read_text()
        # A line per test that is done, with or without the name of a worker in front.
        before = re.findall(r"^(tests/\S+.*?) (PASSED|FAILED|SKIPPED|ERROR)\b", text, re.MULTILINE)
        behind = re.findall(r"^\[gw\d+\] .*?\b(PASSED|FAILED|SKIPPED|ERROR) (tests/.*\S)", text, re.MULTILINE)
        outcomes = [*before, *((name, outcome) for outcome, name in behind)]
        counts = {kind: sum(kind == outcome for _, outcome in outcomes) for kind in OUTCOMES}
        bad = [name for name, outcome in outcomes if outcome in ("FAILED", "ERROR")]
        assert self._process.returncode == 0 and outcomes, f"{stopped}{counts}: {bad[:30]}\n{text[-1500:]}"
        return {"tests": len(outcomes), **{kind.lower(): count for kind, count in counts.items()}}


def measure(record: Record) -> None:
    """All checks; the slow tests run beside the others."""
    with tempfile.TemporaryDirectory() as folder:
        kernels = KernelTests(record.dry, Path(folder))
        try:
            _decoding(record)
            commands.measure(record)
        finally:
            # Some seconds are left for the report of tests that are not done by then.
            record.attempt("tests", {"folder": "tests/ops"}, lambda: kernels.result(record.seconds_left - 15))


def _decoding(record: Record) -> None:
    new = 12 if record.dry else 40
    for dtype in (torch.float32, torch.bfloat16):
        for family in ("llama", "gemma2") if record.dry or dtype == torch.bfloat16 else FAMILIES:
            row = {"family": family, "dtype": str(dtype).removeprefix("torch.")}
            record.attempt("greedy", row, functools.partial(greedy, family, record.device, dtype, new))
    for rule in ("sampled", "block", "argmax_draft"):
        for sampling in SAMPLINGS[: 1 if record.dry else 2]:
            row = {"rule": rule, "sampling": sampling.settings}
            record.attempt(
                "distributions",
                row,
                lambda rule=rule, sampling=sampling: distribution(rule, sampling, record.device, record.dry),
            )
