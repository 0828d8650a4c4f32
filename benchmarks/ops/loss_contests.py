"""The distillation loss on a GPU, forward and backward: ours, plain torch, Liger's and TRL's where they have it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import specdistill_kernels as ours
from benchmarks.support.device_timing import Contestants, Timing
from specdistill_kernels.fused_divergence.reference import divergence

KINDS = (("fkl", 0.0), ("rkl", 1.0), ("jsd", 0.5), ("lk_lambda", None))
"""Divergences, and the beta that Liger has for them."""
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Sizes:
    """Sizes of one loss; both models have the same vocabulary."""

    tokens: int = 4096
    draft_width: int = 1024
    target_width: int = 2048
    vocab: int = 151936


class LossInputs:
    """Hidden states and heads of both models in bfloat16, and the loss with its gradients by every contestant."""

    def __init__(self, sizes: Sizes, device: str) -> None:
        torch.manual_seed(0)
        self.sizes, self._device = sizes, device
        self.hidden = self._leaf(sizes.tokens, sizes.draft_width, 1.0)
        self.head = self._leaf(sizes.vocab, sizes.draft_width, sizes.draft_width**-0.5)
        self.target = self._leaf(sizes.tokens, sizes.target_width, 1.0).detach()
        self.target_head = self._leaf(sizes.vocab, sizes.target_width, sizes.target_width**-0.5).detach()
        self.weights = torch.full((sizes.tokens,), 1 / sizes.tokens, device=device)

    def _leaf(self, rows: int, width: int, scale: float) -> Tensor:
        return (scale * torch.randn(rows, width, device=self._device)).bfloat16().requires_grad_()

    def _gradients(self, loss: Tensor) -> Any:
        return torch.autograd.grad(loss, (self.hidden, self.head))

    def ours(self, kind: str) -> Any:
        states = (self.hidden, self.head, self.target, self.target_head)
        return self._gradients(ours.fused_divergence(*states, self.weights, kind=kind).loss)

    def torch(self, kind: str) -> Any:
        draft, target = self.hidden @ self.head.T, self.target @ self.target_head.T
        return self._gradients(divergence(draft.float(), target.float(), kind).mean())

    def liger(self, module: Any) -> Any:
        """Liger's Triton kernels, whose arguments have this order."""
        return self._gradients(module(self.hidden, self.head, self.target, self.target_head, None))

    def liger_chunked(self, module: Any) -> Any:
        """Liger's loss over chunks of tokens, in plain torch."""
        labels = torch.zeros(self.sizes.tokens, dtype=torch.int64, device=self._device)
        return self._gradients(module(self.hidden, self.head, self.target, self.target_head, labels))

    def trl(self, function: Any) -> Any:
        output = function.apply(self.hidden, self.head, None, self.target, self.target_head, None, 0.5)
        return self._gradients(output[0].mean())


def _peers(inputs: LossInputs, kind: str, beta: float | None, chunked: bool) -> dict[str, Callable[[], Any]]:
    """Contestants of other libraries that are installed and have the divergence. Liger's kernels need a GPU."""
    peers: dict[str, Callable[[], Any]] = {}
    liger = importlib.util.find_spec("liger_kernel") is not None
    if liger and beta is not None and inputs.hidden.is_cuda:
        from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

        module = LigerFusedLinearJSD(jsd_beta=beta)
        peers["liger"] = lambda: inputs.liger(module)
    if liger and chunked and kind == "jsd":
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, compiled=False)
        peers["liger, chunked, uncompiled"] = lambda: inputs.liger_chunked(loss)
    if chunked and kind == "jsd" and importlib.util.find_spec("trl") is not None:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        peers["trl"] = lambda: inputs.trl(ChunkedDivergenceFunction)
    return peers


def divergences(timing: Timing, sizes: Sizes, *, chunked: bool = False, kinds: tuple[Any, ...] = KINDS) -> Rows:
    """Forward and backward of the training loss by all contestants.

    Args:
        timing: How, and on which device.
        sizes: Tokens, widths and vocabulary.
        chunked: Whether the chunked losses of Liger and TRL take part too.
        kinds: Some of `KINDS`.
    """
    inputs = LossInputs(sizes, timing.device)
    rows: Rows = []
    for kind, beta in kinds:
        contestants: Contestants = {
            "specdistill": lambda kind=kind: inputs.ours(kind),
            "torch": lambda kind=kind: inputs.torch(kind),
        }
        contestants |= _peers(inputs, kind, beta, chunked)
        described = {"tokens": sizes.tokens, "widths": [sizes.draft_width, sizes.target_width]}
        rows.append({"kind": kind, **described, **timing.compared(contestants, graph=False)})
        print(json.dumps(rows[-1]), flush=True)
    return rows
