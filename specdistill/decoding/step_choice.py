"""Gives a model captured steps, where they give the same hidden states as eager ones and are faster."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace

import torch

from specdistill.decoding.cached_model import CachedModel
from specdistill.decoding.captured_steps import CapturedSteps, compiled, cuda_graph
from specdistill.decoding.clock import wait_for
from specdistill.decoding.draft_length import FixedLength
from specdistill.decoding.drafting import propose
from specdistill.decoding.position_scaling import cached
from specdistill.decoding.proof import prove, tolerance_of
from specdistill.decoding.sampling import Keys, Sampling
from specdistill.errors import first_line, is_out_of_memory
from specdistill.models import LanguageModel
from specdistill.models.head_draft import HeadModel
from specdistill.models.output_head import sample_ids

_CONTEXT, _DRAFTED = 20, 3


@dataclass(frozen=True)
class StepChoice:
    """How the steps of one model run, and what captured ones cost."""

    way: str
    """`cuda_graphs`, or `torch.compile` on a CPU."""
    used: bool
    """Whether steps are captured; else they run eagerly."""
    reason: str
    """Says why not; empty where they are."""
    eager_seconds: float | None = None
    """Median of an eager step of one token; left out where a captured one was not timed."""
    captured_seconds: float | None = None
    """Median of a captured step of one token."""
    graphs: int = 0
    """Graphs captured so far."""
    capture_seconds: float = 0.0
    """Time of capturing or compiling them."""
    graph_mib: float = 0.0
    """GPU memory that they hold, without the cache; 0 on a CPU, where it is not measured."""

    def line(self) -> str:
        """The choice in a few words."""
        times = ""
        if self.eager_seconds is not None and self.captured_seconds is not None:
            times = f" (captured {1000 * self.captured_seconds:.2f} ms, eager {1000 * self.eager_seconds:.2f} ms)"
        return f"{self.way}{times}" if self.used else f"eager, since {self.reason}{times}"

    def so_far(self, model: LanguageModel) -> StepChoice:
        """The choice with what its model has captured since."""
        if model.step_runner is None:
            return self
        costs = model.step_runner.costs
        return replace(self, graphs=costs.graphs, capture_seconds=costs.seconds, graph_mib=costs.mib)


def capture_pair(target: LanguageModel, draft: LanguageModel, *, batch_size: int = 1) -> dict[str, StepChoice]:
    """Lets the steps of a target and its draft run as graphs, each where `capture_steps` finds it right and faster.

    With a head both run eagerly: its passes read states of the target's passes, which no graph hands on. A target whose
    plain steps were captured would be compared with one whose checks are not.

    Returns:
        `target` and `draft` -> how their steps run.
    """
    models = {"target": target, "draft": draft}
    if isinstance(draft, HeadModel):
        for model in models.values():
            model.step_runner = None
        return dict.fromkeys(models, StepChoice(_way(target), False, "a head reads the target's hidden states"))
    return {name: capture_steps(model, batch_size=batch_size) for name, model in models.items()}


def capture_steps(model: LanguageModel, *, batch_size: int = 1, repeats: int = 7) -> StepChoice:
    """Lets a model's steps run as graphs if they may, give the same states and are faster at this batch size.

    Args:
        model: Gets the runner; one that it has is replaced.
        batch_size: Rows of the steps that are compared.
        repeats: Times that each kind of step is timed, in turn.
    """
    model.step_runner = None
    way, reason = _way(model), _unfit(model)
    if reason is not None:
        return StepChoice(way, False, reason)
    runner = CapturedSteps(cuda_graph if model.device.type == "cuda" else compiled)
    try:
        with model.generating():
            choice = _compared(model, runner, way, batch_size, repeats)
    except Exception as error:
        # Compilers and drivers raise what they like; eager steps need neither. Memory is the user's to mend.
        if is_out_of_memory(error):
            raise
        choice = StepChoice(way, False, f"capturing failed ({first_line(error)})")
    model.step_runner = runner if choice.used else None
    return choice if choice.used else replace(choice, graphs=runner.costs.graphs, capture_seconds=runner.costs.seconds)


def _way(model: LanguageModel) -> str:
    return "cuda_graphs" if model.device.type == "cuda" else "torch.compile"


def _unfit(model: LanguageModel) -> str | None:
    """Why a model's steps can't be captured, as far as that is known beforehand."""
    proof = prove(model)
    if not proof.rolls_back:
        return f"it can't be rolled back: {proof.reason}"
    if type(cached(model, 1, 1)) is not CachedModel:
        return "its positions depend on the length of the text"
    if not model.takes_positions:
        return "it counts positions itself"
    return None


def _compared(model: LanguageModel, runner: CapturedSteps, way: str, batch_size: int, repeats: int) -> StepChoice:
    texts = [sample_ids(model.vocab_size, _CONTEXT + row % 3) for row in range(batch_size)]
    capacity = _CONTEXT + 16
    eager = CachedModel(model, batch_size, capacity)
    model.step_runner = runner
    captured = CachedModel(model, batch_size, capacity)
    for each in (eager, captured):
        each.read(texts)
    token = torch.full((batch_size, 1), texts[0][0], device=model.device)
    largest = 0.0
    # The second step replays at other positions.
    for _ in range(2):
        wanted, states = (each.forward(token).float().clone() for each in (eager, captured))
        largest = max(largest, float((states - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6)))
        for each in (eager, captured):
            each.advance([1] * batch_size)
    if not largest <= tolerance_of(model):
        return StepChoice(way, False, f"captured states differ by {largest:.2g} of the largest")
    seconds: dict[CachedModel, list[float]] = {eager: [], captured: []}
    for _ in range(repeats):
        for each in seconds:
            wait_for(model.device)
            start = time.perf_counter()
            each.forward(token)
            wait_for(model.device)
            seconds[each].append(time.perf_counter() - start)
    one, other = (statistics.median(seconds[each]) for each in (eager, captured))
    if other >= one:
        return StepChoice(way, False, "captured steps are not faster", one, other)
    _draft_once(captured, token)
    return StepChoice(way, True, "", one, other)


def _draft_once(captured: CachedModel, token: torch.Tensor) -> None:
    """Captures a round of drafting, so that what can't be captured shows now."""
    rows = len(token)
    counters = torch.zeros(rows, dtype=torch.int64, device=token.device)
    unread = [[token_id] for (token_id,) in token.tolist()]
    keys, length = Keys(counters, counters), FixedLength(_DRAFTED)
    propose(captured, unread, [_DRAFTED] * rows, sampling=Sampling(temperature=0.0), keys=keys, length=length)
