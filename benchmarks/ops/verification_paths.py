"""Verification of drafted tokens on a GPU, three ways: ours, vLLM's path, and textbook torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import specdistill_kernels as ours

WITHOUT_DRAFT_LOGITS = ("greedy", "argmax_draft")
"""Rules that need the draft's tokens only."""


@dataclass(frozen=True)
class Filters:
    """Filters of all requests; None switches one off."""

    top_k: int | None = None
    top_p: float | None = None

    def to_json(self) -> dict[str, float]:
        """Filters that are on."""
        values = {"top_k": self.top_k, "top_p": self.top_p}
        return {name: value for name, value in values.items() if value is not None}


NO_FILTERS = Filters()


class Requests:
    """A batch in which each request drafted the same number of tokens."""

    def __init__(self, batch: int, drafted: int, temperature: float, vocab: int, device: str):
        torch.manual_seed(0)
        self.batch, self.drafted, self.device = batch, drafted, device
        # Spread so that the likeliest id has a tenth to a third of the mass, as language models have.
        target = 6 * torch.randn(batch, drafted + 1, vocab, device=device)
        draft = target[:, :-1] + 0.3 * torch.randn(batch, drafted, vocab, device=device)
        self.target, self.draft = target.flatten(0, 1).bfloat16(), draft.bfloat16()
        self.temperature = torch.full((batch,), temperature, device=device)
        warm = draft / max(temperature, 1e-3)
        noise = -torch.empty_like(warm).exponential_().log()
        self._argmax, self._drawn = draft.argmax(-1), (warm + noise).argmax(-1)
        self.cumulative = torch.arange(1, batch + 1, device=device) * drafted
        self.seeds, self.positions = torch.arange(batch, device=device), torch.full((batch,), 7, device=device)

    def draft_ids(self, rule: str) -> Tensor:
        """[batch, drafted]: the draft's likeliest ids, or drawn ones where the rule needs draft probabilities."""
        return self._argmax if rule in WITHOUT_DRAFT_LOGITS else self._drawn

    def draft_logits(self, rule: str) -> Tensor | None:
        """[batch, drafted, vocab]; None for rules that need none."""
        return None if rule in WITHOUT_DRAFT_LOGITS else self.draft


def ours_on(requests: Requests, rule: str, filters: Filters) -> Callable[[], Any]:
    """Our verification, fused on a GPU."""
    ids, logits = requests.draft_ids(rule), requests.draft_logits(rule)
    per_request: dict[str, Any] = {
        name: torch.full((requests.batch,), value, device=requests.device) for name, value in filters.to_json().items()
    }
    return lambda: ours.verify(
        requests.target,
        ids.flatten(),
        requests.cumulative,
        None if logits is None else logits.flatten(0, 1),
        rule=rule,
        seeds=requests.seeds,
        positions=requests.positions,
        temperature=requests.temperature,
        backend="auto",
        **per_request,
    )


def other_path_on(requests: Requests, rule: str, filters: Filters) -> Callable[[], Any]:
    """Our verification with decisions in a launch of their own where they have none, and the other way round.

    The limit between the two should be where both take as long.
    """
    from specdistill_kernels.verify import fused

    call = ours_on(requests, rule, filters)
    repeated = requests.batch * -(-requests.target.shape[1] // ours.noise.GROUP) <= fused.REPEATED_DECISIONS

    def other() -> Any:
        with mock.patch.object(fused, "REPEATED_DECISIONS", 0 if repeated else 2**31):
            return call()

    return other


def vllm_on(vllm: Any, requests: Requests, rule: str, filters: Filters) -> Callable[[], Any]:
    """The path of vLLM's second model runner. It wants one more draft token per request, which it doesn't read."""
    ids = requests.draft_ids(rule)
    rows, width, device = requests.batch * (requests.drafted + 1), requests.drafted + 1, requests.device
    drafted = torch.cat([ids[:, :1], ids], 1).flatten().int()
    ends = torch.arange(requests.batch + 1, device=device, dtype=torch.int32) * width
    request = torch.arange(requests.batch, device=device, dtype=torch.int32)
    request_of_row = request.repeat_interleave(width)
    local = torch.arange(width, device=device, dtype=torch.int32).repeat(requests.batch)
    positions = torch.arange(rows, device=device)
    draft = requests.draft_logits(rule)
    top_k = None if filters.top_k is None else torch.full((rows,), filters.top_k, device=device, dtype=torch.int32)
    top_p = None if filters.top_p is None else torch.full((rows,), filters.top_p, device=device)

    def call() -> Any:
        logits = torch.empty_like(requests.target, dtype=torch.float32).copy_(requests.target)
        if rule != "greedy":
            vllm.apply_temperature(logits, request_of_row, requests.temperature)
        if filters != NO_FILTERS:
            logits = vllm.apply_top_k_top_p(logits, top_k, top_p)
        return vllm.reject(
            logits, draft, drafted, ends, positions, request, request_of_row, local, requests.temperature,
            requests.seeds, requests.drafted, use_block_verification=rule == "block",
        )  # fmt: skip

    return call


def torch_on(requests: Requests, rule: str, filters: Filters) -> Callable[[], Any]:
    """The textbook in torch: both distributions in float32, coins, the residual, a draw by an exponential race."""
    ids = requests.draft_ids(rule)
    request = torch.arange(requests.batch, device=requests.device)

    def probabilities(logits: Tensor) -> Tensor:
        scores = logits.float() / requests.temperature[:, None, None]
        if filters != NO_FILTERS:
            ordered, order = scores.sort(-1, descending=True)
            ordered[..., filters.top_k or requests.target.shape[1] :] = -torch.inf
            mass = ordered.softmax(-1)
            ordered = ordered.masked_fill(mass.cumsum(-1) - mass > (filters.top_p or 1), -torch.inf)
            scores = torch.empty_like(scores).scatter_(-1, order, ordered)
        return scores.softmax(-1)

    def call() -> Any:
        logits = requests.target.unflatten(0, (requests.batch, -1))
        if rule == "greedy":
            own = logits.argmax(-1)
            kept = (own[:, :-1] == ids).long().cumprod(1).sum(1)
            return kept, own[request, kept]
        target = probabilities(logits)
        chance = target[:, :-1].gather(2, ids[..., None])[..., 0]
        if rule == "argmax_draft":
            draft = torch.zeros_like(target).scatter_(2, torch.nn.functional.pad(ids, (0, 1))[..., None], 1.0)
            draft[:, -1] = 0
        else:
            draft = torch.nn.functional.pad(probabilities(requests.draft), (0, 0, 0, 1))
            chance = chance / draft[:, :-1].gather(2, ids[..., None])[..., 0]
        kept = (torch.rand(chance.shape, device=requests.device) < chance).long().cumprod(1).sum(1)
        residual = (target[request, kept] - draft[request, kept]).clamp_(min=0)
        return kept, residual.div_(torch.empty_like(residual).exponential_()).argmax(-1)

    return call
