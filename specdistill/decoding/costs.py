"""Measures the costs of one round on this machine: draft step, plain target step, target pass over several tokens."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from specdistill.data.batch import Example
from specdistill.decoding.cached_model import CachedModel
from specdistill.decoding.guidance import Guidance
from specdistill.decoding.guided_model import GuidedModel, cached_model
from specdistill.decoding.recomputed import RecomputedModel
from specdistill.models import LanguageModel

Window = tuple[list[int], list[int]]
"""Token ids of a text, and those that follow it."""


@dataclass(frozen=True)
class Costs:
    """Costs measured on one machine at one batch size."""

    target_step_seconds: float
    """Seconds of one plain target step."""
    draft_step_seconds: float
    """Seconds of one draft step."""
    verify_cost: Mapping[int, float]
    """Number of tokens in a target pass -> its time in plain target steps; 1 -> 1.0."""

    @property
    def cost_ratio(self) -> float:
        """Time of one draft step in plain target steps (c)."""
        return self.draft_step_seconds / self.target_step_seconds


def windows_of(answers: Sequence[Example], length: int) -> list[Window]:
    """The middle of each answer that is long enough: its text so far, and the next `length` tokens."""
    windows = []
    for answer in answers:
        start = (len(answer.answer_ids) - length) // 2
        if start >= 0:
            before = [*answer.prompt_ids, *answer.answer_ids[:start]]
            windows.append((before, list(answer.answer_ids[start : start + length])))
    return windows


def measure_costs(
    target: LanguageModel,
    draft: LanguageModel,
    *,
    batch_size: int,
    max_draft_tokens: int,
    context: int,
    repeats: int = 7,
    on_pass: Callable[[], None] | None = None,
    guidance: Guidance | None = None,
    windows: Sequence[Window] = (),
) -> Costs:
    """Times every kind of pass and takes medians. The kinds take turns, so that noise affects all of them alike.

    Args:
        target, draft: The two models.
        batch_size: Rows per pass.
        max_draft_tokens: Target passes over 1, 2, ... up to this many + 1 tokens are timed.
        context: Tokens that are in the caches before each pass.
        repeats: Times that each kind of pass is measured.
        on_pass: Called after each pass, for progress.
        guidance: Classifier-free guidance of the target: its passes then hold twice as many rows.
        windows: From `windows_of`, for a target whose time depends on the tokens (a mixture of experts), without
            guidance: each repeat reads others of them. Left out, the target reads any ids.

    Returns:
        Median seconds of a draft step and a target step, and the verify costs in target steps.
    """
    widths = range(1, max_draft_tokens + 2)
    passes = [("draft", 1), *(("target", width) for width in widths)]
    seconds: dict[tuple[str, int], list[float]] = {kind: [] for kind in passes}
    with target.generating(), draft.generating():
        capacity = max([context, *(len(before) for before, _ in windows)]) + max_draft_tokens + 1
        if guidance is not None:
            # The twins' contexts are as long as the rows'.
            guidance = replace(guidance, negative_ids=(0,) * context)
        models = {
            "target": cached_model(target, batch_size, capacity, guidance),
            "draft": cached_model(draft, batch_size, capacity),
        }
        ids = torch.arange(context, device=target.device).remainder(target.vocab_size).expand(batch_size, -1)
        for cached in models.values():
            cached.read(ids.tolist())
        tokens = dict.fromkeys(models, ids)
        # The first repeat warms up thread pools, allocators and lazily built heads; it is not counted.
        for repeat in range(repeats + 1):
            if windows:
                rows = [windows[(repeat * batch_size + row) % len(windows)] for row in range(batch_size)]
                models["target"].set_lengths([0] * batch_size)
                models["target"].read([before for before, _ in rows])
                tokens["target"] = torch.tensor([after for _, after in rows], device=target.device)
            for model, width in passes:
                elapsed = _time_pass(models[model], tokens[model][:, :width], picks_token=model == "draft")
                if repeat:
                    seconds[model, width].append(elapsed)
                if on_pass is not None:
                    on_pass()
    median = {kind: statistics.median(values) for kind, values in seconds.items()}
    step = median["target", 1]
    return Costs(step, median["draft", 1], {width: median["target", width] / step for width in widths})


def _time_pass(
    cached: CachedModel | GuidedModel | RecomputedModel, token_ids: torch.Tensor, picks_token: bool
) -> float:
    start = time.perf_counter()
    logits = cached.own_logits(cached.forward(token_ids))
    if picks_token:
        logits.argmax(-1)
    return time.perf_counter() - start
