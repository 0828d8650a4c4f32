"""What the steps of one round cost on this machine: draft step, plain target step, target pass over several tokens."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from specdistill.decoding.cached_model import CachedModel
from specdistill.models import LanguageModel


@dataclass(frozen=True)
class Costs:
    """Measured on this machine at one batch size."""

    target_step_seconds: float
    """One plain target step."""
    draft_step_seconds: float
    """One draft step."""
    verify_cost: Mapping[int, float]
    """Tokens in one target pass -> its time in plain target steps; 1 -> 1.0."""

    @property
    def cost_ratio(self) -> float:
        return self.draft_step_seconds / self.target_step_seconds


def measure_costs(
    target: LanguageModel,
    draft: LanguageModel,
    *,
    batch_size: int,
    max_draft_tokens: int,
    context: int,
    repeats: int = 7,
    on_pass=None,
) -> Costs:
    """Times every kind of pass in turn, several rounds interleaved, and takes medians: noise hits all of them alike.

    Args:
        target, draft: The pair.
        batch_size: Rows per pass.
        max_draft_tokens: Target passes over 1 to this many + 1 tokens are timed.
        context: Tokens already in the caches.
        repeats: Rounds.
        on_pass: Called after each pass, for progress.

    Returns:
        Median seconds of a draft step and a target step, and the verify costs in target steps.
    """
    widths = range(1, max_draft_tokens + 2)
    with target.generating(), draft.generating():
        models = [CachedModel(model, batch_size, context + max_draft_tokens + 1) for model in (target, draft)]
        ids = torch.arange(context, device=target.device).remainder(target.vocab_size).expand(batch_size, -1)
        for cached in models:
            cached.forward(ids)
            cached.advance([context] * batch_size)
        seconds: dict[tuple[int, int], list[float]] = {}
        passes = [(1, 1), *((0, width) for width in widths)]
        # The first round warms up thread pools, allocators and lazily built heads; it is not counted.
        for repeat in range(repeats + 1):
            for which, width in passes:
                took = _one_pass(models[which], ids[:, :width], greedy=which == 1)
                if repeat:
                    seconds.setdefault((which, width), []).append(took)
                if on_pass is not None:
                    on_pass()
    median = {key: statistics.median(values) for key, values in seconds.items()}
    step = median[0, 1]
    return Costs(step, median[1, 1], {width: median[0, width] / step for width in widths})


def _one_pass(cached: CachedModel, token_ids: torch.Tensor, greedy: bool) -> float:
    start = time.perf_counter()
    logits = cached.own_logits(cached.forward(token_ids))
    if greedy:
        logits.argmax(-1)
    return time.perf_counter() - start
