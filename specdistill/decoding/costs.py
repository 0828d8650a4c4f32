"""Measures the costs of one round on this machine: draft step, plain target step, target pass over several tokens."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from specdistill.data.batch import Example
from specdistill.decoding.cached_head import CachedHead
from specdistill.decoding.cached_model import CachedModel
from specdistill.decoding.clock import wait_for
from specdistill.decoding.guidance import Guidance
from specdistill.decoding.guided_model import GuidedModel, cached_model
from specdistill.decoding.recomputed import RecomputedModel
from specdistill.decoding.transfers import to_device
from specdistill.models import LanguageModel
from specdistill.models.head_draft import HeadModel

Window = tuple[list[int], list[int]]
"""Token ids of a text, and those that follow it."""


@dataclass(frozen=True)
class DraftCosts:
    """Costs of drafting, in plain target steps."""

    step: float
    """One draft step (c): a pass over one token that proposes one."""
    passes: Mapping[int, tuple[float, float]] | None = None
    """For a draft that guesses all tokens of a round in one pass, and for a head: number of tokens (K) -> time of its
    passes of a round behind one new token, and behind the K + 1 that a round emits at most. None where each token takes
    a step."""

    def of_round(self, num_draft_tokens: int, new_tokens: float) -> float:
        """Drafting in one round.

        Args:
            num_draft_tokens: Tokens drafted; 0 costs nothing.
            new_tokens: Tokens kept since the last draft, which one pass reads before its mask tokens, and a head in its
                first pass: the mean acceptance length where every round drafts. Other drafts read them within their
                steps.
        """
        if self.passes is None or not num_draft_tokens:
            return num_draft_tokens * self.step
        shortest, longest = self.passes[num_draft_tokens]
        return shortest + (longest - shortest) * (new_tokens - 1) / num_draft_tokens


@dataclass(frozen=True)
class Costs:
    """Costs measured on one machine at one batch size."""

    target_step_seconds: float
    """Seconds of one plain target step."""
    draft_step_seconds: float
    """Seconds of one draft step."""
    verify_cost: Mapping[int, float]
    """Number of tokens in a target pass -> its time in plain target steps; 1 -> 1.0."""
    draft_passes: Mapping[int, tuple[float, float]] | None = None
    """`DraftCosts.passes`."""
    by_steps: bool = False
    """Whether those are a head's, one for each token of a round, and not one pass for all of them."""

    @property
    def cost_ratio(self) -> float:
        """Time of one draft step in plain target steps (c)."""
        return self.draft_step_seconds / self.target_step_seconds

    @property
    def drafting(self) -> DraftCosts:
        """Costs of the draft alone."""
        return DraftCosts(self.cost_ratio, self.draft_passes)

    def round_cost(self, num_draft_tokens: int, tokens_per_call: float) -> float:
        """Time of drafting and of the check of what was drafted, in plain target steps.

        Args:
            num_draft_tokens: Tokens drafted.
            tokens_per_call: Mean acceptance length at that number.
        """
        check = self.verify_cost[num_draft_tokens + 1]
        return self.drafting.of_round(num_draft_tokens, tokens_per_call) + check


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
    checks: bool = True,
) -> Costs:
    """Times every kind of pass and takes medians. The kinds take turns, so that noise affects all of them alike.

    Args:
        target, draft: The two models.
        batch_size: Rows per pass.
        max_draft_tokens: Target passes over 1, 2, ... up to this many + 1 tokens are timed, of a parallel draft the
            passes that guess 1, 2, ... up to this many, and of a head those that begin a round.
        context: Tokens that are in the caches before each pass.
        repeats: Times that each kind of pass is measured.
        on_pass: Called after each pass, for progress.
        guidance: Classifier-free guidance of the target: its passes then hold twice as many rows.
        windows: From `windows_of`, for a target whose time depends on the tokens (a mixture of experts), without
            guidance: each repeat reads others of them. Left out, the target reads any ids.
        checks: Whether target passes over more than one token are timed.

    Returns:
        Median seconds of a draft step and a target step, and the verify costs in target steps.
    """
    widths = range(1, max_draft_tokens + 2) if checks else range(1, 2)
    passes = _passes(draft, max_draft_tokens, widths)
    seconds: dict[_Pass, list[float]] = {kind: [] for kind in passes}
    with target.generating(), draft.generating():
        capacity = max([context, *(len(before) for before, _ in windows)]) + 2 * max_draft_tokens + 1
        if guidance is not None:
            # The twins' contexts are as long as the rows'.
            guidance = replace(guidance, negative_ids=(0,) * context)
        models = _caches(target, draft, batch_size, capacity, guidance)
        ids = _any_ids(target, max(context, 2 * max_draft_tokens + 1), batch_size)
        for cached in models.values():
            cached.read(ids[:, :context].tolist())
        tokens = dict.fromkeys(models, ids)
        # The first repeat warms up thread pools, allocators and lazy heads; it is not counted.
        for repeat in range(repeats + 1):
            if windows:
                rows = [windows[(repeat * batch_size + row) % len(windows)] for row in range(batch_size)]
                models["target"].set_lengths([0] * batch_size)
                models["target"].read([before for before, _ in rows])
                tokens["target"] = to_device([after for _, after in rows], target.device)
            for kind in passes:
                elapsed = _time_pass(models[kind.model], tokens[kind.model], kind)
                seconds[kind] += [elapsed] if repeat else []
                if on_pass is not None:
                    on_pass()
    return _costs({kind: statistics.median(values) for kind, values in seconds.items()}, draft, max_draft_tokens)


def _caches(
    target: LanguageModel, draft: LanguageModel, batch_size: int, capacity: int, guidance: Guidance | None
) -> dict[str, CachedModel | GuidedModel | RecomputedModel]:
    of_target = cached_model(target, batch_size, capacity, guidance)
    if isinstance(draft, HeadModel):
        return {"target": of_target, "draft": CachedHead(draft, batch_size, capacity, of_target)}
    return {"target": of_target, "draft": cached_model(draft, batch_size, capacity)}


def _any_ids(model: LanguageModel, length: int, batch_size: int) -> torch.Tensor:
    return torch.arange(length, device=model.device).remainder(model.vocab_size).expand(batch_size, -1)


def passes_timed(draft: LanguageModel, max_draft_tokens: int, repeats: int = 7) -> int:
    """How often `measure_costs` calls `on_pass`."""
    return (repeats + 1) * len(_passes(draft, max_draft_tokens, range(1, max_draft_tokens + 2)))


class _Pass(NamedTuple):
    """One kind of pass."""

    model: str
    width: int
    """Tokens that it reads."""
    picked: int = 0
    """Tokens that the draft picks, from the last rows; 0 gives all rows' logits, which verification needs."""
    states: bool = False
    """Whether a head reads the target's states, and not what its last pass gave."""


def _passes(draft: LanguageModel, longest: int, widths: Iterable[int]) -> list[_Pass]:
    # A set, since the shortest pass of a parallel draft is its step.
    guesses: list[_Pass] = []
    if isinstance(draft, HeadModel):
        guesses = [_first(new) for new in range(1, longest + 2)]
    elif draft.parallel is not None:
        guesses = [_guess(count, new) for count, new in _ends(longest)]
    return [*dict.fromkeys([_Pass("draft", 1, 1), *guesses]), *(_Pass("target", width) for width in widths)]


def _ends(longest: int) -> list[tuple[int, int]]:
    """Numbers of guessed tokens, each with the fewest and the most new tokens that a round leaves to read."""
    return [(count, new) for count in range(1, longest + 1) for new in (1, count + 1)]


def _guess(count: int, new: int) -> _Pass:
    return _Pass("draft", new + count - 1, count)


def _first(new: int) -> _Pass:
    """The pass with which a head begins a round."""
    return _Pass("draft", new, 1, states=True)


def _costs(median: Mapping[_Pass, float], draft: LanguageModel, longest: int) -> Costs:
    step = median[_Pass("target", 1)]
    one = median[_Pass("draft", 1, 1)]
    passes = None
    if isinstance(draft, HeadModel):
        ends = ((count, median[_first(1)], median[_first(count + 1)]) for count in range(1, longest + 1))
        rest = one / step
        passes = {count: (a / step + (count - 1) * rest, b / step + (count - 1) * rest) for count, a, b in ends}
    elif draft.parallel is not None:
        passes = {
            count: (median[_guess(count, 1)] / step, median[_guess(count, count + 1)] / step)
            for count in range(1, longest + 1)
        }
    checks = {kind.width: value / step for kind, value in median.items() if kind.model == "target"}
    return Costs(step, one, checks, passes, by_steps=isinstance(draft, HeadModel))


def _time_pass(cached: CachedModel | GuidedModel | RecomputedModel, token_ids: torch.Tensor, kind: _Pass) -> float:
    token_ids = token_ids[:, : kind.width]
    wait_for(cached.model.device)
    start = time.perf_counter()
    if isinstance(cached, CachedHead):
        hidden = cached.forward_with(token_ids, states=kind.states)
    else:
        hidden = cached.forward(token_ids)
    logits = cached.own_logits(hidden[:, -kind.picked :] if kind.picked else hidden)
    if kind.picked:
        logits.argmax(-1)
    wait_for(cached.model.device)
    return time.perf_counter() - start
