"""Every launch of every kernel, recorded from the operations' own launchers on CPU tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from benchmarks.ops.kernel_rows import Case
from specdistill_kernels.expected_acceptance import fused as acceptance
from specdistill_kernels.filter_threshold import fused as threshold
from specdistill_kernels.fused_divergence import DIVERGENCES
from specdistill_kernels.fused_divergence import fused as divergence
from specdistill_kernels.fused_divergence import fused_head as divergence_head
from specdistill_kernels.noise import TARGET, TILE
from specdistill_kernels.sample import fused as sample
from specdistill_kernels.sampling_settings import KernelSettings
from specdistill_kernels.topk_membership import fused as membership
from specdistill_kernels.verify import fused as verify

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int64: "i64", torch.int32: "i32",
          torch.int16: "i16", torch.bool: "i1"}  # fmt: skip
Calls = dict[str, Callable[[], Any]]
"""Operation and variant -> a call of its launcher."""


@dataclass(frozen=True)
class Streaming:
    """How a kernel that reads rows goes over the vocabulary."""

    entries: int
    """Columns that its code handles between two jumps back."""
    reads: int
    """How often that code may load an entry, all rows and passes together."""


# Kernels that are not here read a few numbers per row.
STREAMING = {
    "expected_acceptance_fwd_kernel": Streaming(acceptance.BLOCK, 4),
    "topk_membership_fwd_kernel": Streaming(membership.BLOCK, 1),
    # Log-sum-exps, sums and gradient of two rows (`ce` with a target has no use for the third pass of the target's).
    "divergence_rows_kernel": Streaming(divergence.BLOCK, 6),
    "filter_scan_kernel": Streaming(threshold.SCANNED, 1),
    # Of the chosen chunks: search by count, mass (unrolled by 4), search by mass. The searches run once per two bits.
    "filter_threshold_kernel": Streaming(threshold.BLOCK, 6),
    "sample_pick_kernel": Streaming(4 * TILE, 1),
    # A target row or a draft row: both are in the code, and NVIDIA's compiler makes one of them if they are alike.
    "verify_statistics_kernel": Streaming(4 * TILE, 2),
    "verify_masses_kernel": Streaming(TILE, 2),
    "verify_resample_kernel": Streaming(4 * TILE, 2),
}


@dataclass(frozen=True)
class Launch:
    """A kernel as its launcher called it."""

    case: Case
    kernel: Any
    arguments: dict[str, Any]
    warps: int

    @property
    def kernel_name(self) -> str:
        return self.kernel.fn.__name__

    @property
    def streaming(self) -> Streaming | None:
        return STREAMING.get(self.kernel_name)


def record_launches(case: Case, call: Callable[[], Any]) -> list[Launch]:
    """Runs launcher code on CPU tensors and records the kernels that it would launch, with their real arguments."""
    launches = []

    def record(kernel, *args, grid, warmup, num_warps, **constants):
        names = [parameter.name for parameter in kernel.params]
        arguments = dict(zip(names, args, strict=False)) | constants
        launches.append(Launch(case, kernel, arguments, num_warps))

    with mock.patch.object(JITFunction, "run", record):
        call()
    return launches


def operation_calls(dtype: torch.dtype, aligned: bool) -> Calls:
    """Every operation with one kind of logits; variants with aligned bfloat16 ones only."""
    calls = _OperationCalls(dtype, aligned)
    return calls.basic() | (calls.variants() if dtype == torch.bfloat16 and aligned else {})


def launches_of(operation: str, dtype: torch.dtype, aligned: bool) -> list[Launch]:
    """Launches of one operation."""
    return record_launches(Case(operation, DTYPES[dtype], aligned), operation_calls(dtype, aligned)[operation])


def all_launches() -> Iterator[Launch]:
    """Every operation in the dtypes and alignments that engines hold."""
    for dtype, aligned in ((torch.bfloat16, True), (torch.float32, True), (torch.bfloat16, False)):
        for operation, call in operation_calls(dtype, aligned).items():
            yield from record_launches(Case(operation, DTYPES[dtype], aligned), call)


class _OperationCalls:
    """Launchers of two requests with two draft tokens each."""

    def __init__(self, dtype: torch.dtype, aligned: bool) -> None:
        self.dtype, self.aligned = dtype, aligned
        self.draft_rows, self.target_rows = self.logits(4), self.logits(6)
        self.tokens, self.ends = torch.zeros(4, dtype=torch.int64), torch.tensor([2, 4])
        self.keys = [torch.zeros(2, dtype=torch.int64)] * 2
        self.settings, self.settings_per_row = self.filtering(2), self.filtering(4)
        self.row_keys = [self.tokens] * 3

    def filtering(self, rows: int) -> KernelSettings:
        """Settings with every filter, a tensor each."""
        values = (1.0, 40, 0.9, 0.1)
        return KernelSettings(*(torch.full((rows,), value) for value in values))

    def logits(self, rows: int) -> Tensor:
        return torch.zeros(rows, 49152 if self.aligned else 50257, dtype=self.dtype)

    def verifying(
        self, rule: str, draft: Tensor | None, filtered: bool, given: bool = False, apart: bool = False
    ) -> Callable[[], Any]:
        """Verification under one rule.

        Args:
            rule, draft, filtered: As in `verify_fused`.
            given: The draft's rows are probabilities.
            apart: As for many requests, whose decisions have launches of their own.
        """
        settings = self.settings if filtered else KernelSettings(0.7, 0.0, 1.0, 0.0)
        arguments = (self.target_rows, self.tokens, self.ends, draft, rule, self.keys, settings, filtered, 1.0, given)

        def call() -> None:
            limit = 0 if apart else verify.REPEATED_DECISIONS
            with mock.patch.object(verify, "REPEATED_DECISIONS", limit):
                verify.verify_fused(*arguments)

        return call

    def verifying_one_request(self) -> Callable[[], Any]:
        """A single request: a number that is 1 becomes a constant, which is another program."""
        return lambda: verify.verify_fused(
            self.target_rows[:3],
            self.tokens[:2],
            self.ends[:1],
            self.draft_rows[:2],
            "sampled",
            [key[:1] for key in self.keys],
            self.filtering(1),
            True,
            1.0,
            False,
        )

    def diverging(self, kind: str, cap: float | None = None, shared: bool = False) -> Callable[[], Any]:
        """One tile of the training loss, with its gradient; `shared` where its rows share rows of the target."""
        weights = torch.ones(4)
        # The draft's tile is overwritten with its gradient, so it has a tensor of its own.
        arguments = (self.logits(4), self.draft_rows, self.tokens, weights, kind, 0.5, 3.0, 0.7, cap, cap, True)
        shared_rows = torch.zeros(4, dtype=torch.int64) if shared else None
        return lambda: divergence.divergence_tile(*arguments, shared_rows)

    def basic(self) -> Calls:
        """Every operation once."""
        rows, tokens = self.draft_rows, self.tokens
        hidden, out = torch.zeros(4, 576, dtype=self.dtype), torch.zeros(rows.shape[1], 576)
        return {
            "fused_divergence lk_lambda": self.diverging("lk_lambda"),
            "fused_divergence head": lambda: divergence_head.add_weight_gradient(out, rows, hidden),
            "expected_acceptance": lambda: acceptance.expected_acceptance_fused(rows, rows, tokens),
            "topk_membership": lambda: membership.topk_membership_fused(rows, tokens, 25),
            "filter_threshold": lambda: threshold.filter_threshold_fused(rows, self.settings_per_row),
            "sample": lambda: sample.sample_fused(rows, self.row_keys, TARGET, self.settings_per_row, True, False),
            "verify sampled": self.verifying("sampled", rows, True),
        }

    def variants(self) -> Calls:
        """Other rules and divergences, which are other programs of the same kernels."""
        rows, settings = self.draft_rows, self.settings_per_row
        return {
            "expected_acceptance no tokens": lambda: acceptance.expected_acceptance_fused(rows, rows, None),
            "filter_threshold of 151936 ids": lambda: threshold.filter_threshold_fused(
                torch.zeros(4, 151936, dtype=self.dtype), settings
            ),
            "sample greedy": lambda: sample.sample_fused(rows, self.row_keys, TARGET, settings, False, True),
            **{f"fused_divergence {kind}": self.diverging(kind) for kind in DIVERGENCES if kind != "lk_lambda"},
            "fused_divergence capped": self.diverging("fkl", 30.0),
            "fused_divergence, shared target rows": self.diverging("fkl", shared=True),
            "verify greedy": self.verifying("greedy", None, False),
            "verify one-hot": self.verifying("argmax_draft", None, False),
            "verify block": self.verifying("block", rows, True),
            "verify block, many requests": self.verifying("block", rows, True, apart=True),
            "verify sampled, no filters": self.verifying("sampled", rows, False),
            "verify sampled, many requests": self.verifying("sampled", rows, False, apart=True),
            "verify one request": self.verifying_one_request(),
            "verify block, probabilities": self.verifying("block", rows.float(), True, True),
        }
