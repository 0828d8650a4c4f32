"""Plain and speculative decoding in real shapes: steps, rounds, and the time that is not inside the two models."""

from __future__ import annotations

import dataclasses
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu.host_syncs import SyncCounter, counted_syncs
from benchmarks.gpu.record import Record
from benchmarks.support.random_models import (
    LLAMA_1B,
    LLAMA_8B,
    QWEN_06B,
    QWEN_8B,
    TINY_DRAFT,
    TINY_QWEN,
    TINY_TARGET,
    Shape,
    random_model,
    random_prompts,
)
from specdistill.decoding import Generation, Sampling, SpeculativeDecoder, generate_plain
from specdistill.decoding.costs import measure_costs
from specdistill.decoding.step_choice import StepChoice, capture_steps
from specdistill.models import LanguageModel

GREEDY = Sampling(temperature=0.0)
DRAFTED = 4


@dataclass(frozen=True)
class Sizes:
    """Sizes of all rows."""

    pairs: tuple[tuple[Shape, Shape], ...] = ((LLAMA_8B, LLAMA_1B), (QWEN_8B, QWEN_06B))
    """Target and draft."""
    batches: tuple[int, ...] = (1, 8, 64)
    prompt: int = 512
    """Tokens of each prompt."""
    new: int = 40
    """Tokens of each answer."""
    repeats: int = 7
    """Passes of each kind that costs are medians of."""


TINY = Sizes(((TINY_TARGET, TINY_DRAFT), (TINY_QWEN, TINY_DRAFT)), (1, 2), prompt=16, new=14, repeats=1)


class Ticks:
    """Notes when the first row of a batch gets tokens, and how many host synchronisations there were until then."""

    def __init__(self, syncs: SyncCounter | None = None) -> None:
        self.seconds: list[float] = []
        self.syncs: list[tuple[int, int]] = []
        self._counter = syncs

    def __call__(self, row: int, token_ids: list[int]) -> None:
        if row == 0:
            self.seconds.append(time.perf_counter())
            if self._counter is not None:
                self.syncs.append(self._counter.counts())

    def step_seconds(self, steady: list[int]) -> float:
        """Median time between ticks, over the steady steps; step i ends with tick i + 1."""
        return statistics.median(self.seconds[step + 1] - self.seconds[step] for step in steady)


def steady_rounds(generation: Generation) -> list[int]:
    """Rounds of the first row that drafted all tokens. The first one is left out: there the draft reads the prompt."""
    rounds = list(enumerate(generation.rounds))[1:]
    return [number for number, entry in rounds if entry.proposed == DRAFTED]


def outside_share(generation: Generation) -> float:
    """Share of the call's time that was not inside the models' forward passes."""
    return round(1 - generation.model_seconds / generation.seconds, 4)


class Pair:
    """Target and draft with the prompts of one batch size."""

    def __init__(self, target: LanguageModel, draft: LanguageModel, sizes: Sizes, batch: int) -> None:
        self.target, self.draft, self.sizes, self.batch = target, draft, sizes, batch
        self._prompts = random_prompts(batch, sizes.prompt, target.vocab_size)

    def _plain(self, sampling: Sampling, ticks: Ticks, new: int) -> Generation:
        seeds = list(range(self.batch))
        return generate_plain(
            self.target, self._prompts, sampling=sampling, max_new_tokens=new, seeds=seeds, on_tokens=ticks
        )[0]

    def _speculative(self, sampling: Sampling, ticks: Ticks, new: int) -> Generation:
        decoder = SpeculativeDecoder(self.target, self.draft, num_draft_tokens=DRAFTED, sampling=sampling)
        return decoder.generate(self._prompts, max_new_tokens=new, seeds=list(range(self.batch)), on_tokens=ticks)[0]

    def decoding(self, sampling: Sampling) -> dict[str, Any]:
        """Steps, rounds and costs at one temperature."""
        # First calls pay for compiled kernels and libraries' workspaces.
        self._plain(sampling, Ticks(), 3)
        self._speculative(sampling, Ticks(), DRAFTED + 3)
        ticks = Ticks()
        plain = self._plain(sampling, ticks, self.sizes.new)
        step = ticks.step_seconds(list(range(1, len(ticks.seconds) - 1)))
        ticks = Ticks()
        speculative = self._speculative(sampling, ticks, self.sizes.new)
        steady = steady_rounds(speculative)
        one_round = ticks.step_seconds(steady)
        tokens = statistics.mean(speculative.rounds[number].emitted for number in steady)
        return {
            "plain": {
                "step_ms": 1000 * step,
                "tokens_per_second": self.batch / step,
                "first_token_ms": 1000 * plain.first_token_seconds,
                "outside_models": outside_share(plain),
            },
            "speculative": {
                "rounds": len(steady),
                "round_ms": 1000 * one_round,
                "round_in_plain_steps": one_round / step,
                "tokens_per_round": tokens,
                "outside_models": outside_share(speculative),
            },
        }

    def costs(self) -> dict[str, Any]:
        """Single passes, as `bench` measures them."""
        costs = measure_costs(
            self.target,
            self.draft,
            batch_size=self.batch,
            max_draft_tokens=DRAFTED,
            context=self.sizes.prompt,
            repeats=self.sizes.repeats,
        )
        return {
            "target_step_ms": 1000 * costs.target_step_seconds,
            "draft_step_ms": 1000 * costs.draft_step_seconds,
            "cost_ratio": costs.cost_ratio,
            "verify_cost": {str(width): cost for width, cost in costs.verify_cost.items()},
        }

    def row(self, sampling: Sampling = GREEDY) -> dict[str, Any]:
        """Everything of one batch size, and the share of a round that no pass of a model explains."""
        row = self.decoding(sampling) | {"costs": self.costs()}
        costs = row["costs"]
        passes = DRAFTED * costs["draft_step_ms"] + costs["verify_cost"][str(DRAFTED + 1)] * costs["target_step_ms"]
        row["speculative"]["share_not_in_passes"] = 1 - passes / row["speculative"]["round_ms"]
        return row

    def syncs(self, sampling: Sampling) -> dict[str, Any]:
        """Host synchronisations of a steady round and of a plain step, and where they come from."""
        result = {}
        for name, run in (("plain_step", self._plain), ("round", self._speculative)):
            with counted_syncs(self.target.device.type) as counter:
                ticks = Ticks(counter)
                generation = run(sampling, ticks, 6 * DRAFTED)
            steady = steady_rounds(generation) if name == "round" else list(range(1, len(ticks.seconds) - 1))
            first, last = steady[0], steady[-1]
            result[name] = counter.between(ticks.syncs[first], ticks.syncs[last + 1], last + 1 - first)
        return result


def captured_row(target: LanguageModel, draft: LanguageModel, sizes: Sizes, batch: int) -> dict[str, Any]:
    """Eager and captured steps of one batch size in one row: rounds, costs, and what capturing takes.

    On a CPU, where a dry run must not compile for minutes, both are eager.
    """
    pair, names = Pair(target, draft, sizes, batch), ("target", "draft")
    eager = pair.row()
    choices = {}
    try:
        for name, model in zip(names, (target, draft), strict=True):
            on_gpu = model.device.type == "cuda"
            choices[name] = (
                capture_steps(model, batch_size=batch) if on_gpu else StepChoice("cuda_graphs", False, "dry")
            )
        captured = pair.row()
        costs = {
            name: dataclasses.asdict(choices[name].so_far(model))
            for name, model in zip(names, (target, draft), strict=True)
        }
    finally:
        target.step_runner = draft.step_runner = None
    faster = {
        "plain": eager["plain"]["step_ms"] / captured["plain"]["step_ms"],
        "round": eager["speculative"]["round_ms"] / captured["speculative"]["round_ms"],
        "draft_step": eager["costs"]["draft_step_ms"] / captured["costs"]["draft_step_ms"],
    }
    return {"steps": costs, "eager": eager, "captured": captured, "captured_over_eager": faster}


def measure(record: Record) -> None:
    """Every pair at every batch size."""
    sizes = TINY if record.dry else Sizes()
    dtype = torch.float32 if record.dry else torch.bfloat16
    record.set("sizes", {"prompt": sizes.prompt, "new": sizes.new, "drafted": DRAFTED, "dtype": str(dtype)})
    for target, draft in sizes.pairs:
        target_model = random_model(target.config(), target.name, device=record.device, dtype=dtype)
        draft_model = random_model(draft.config(), draft.name, device=record.device, dtype=dtype)
        _measure_pair(record, sizes, target_model, draft_model)
        del target_model, draft_model
        record.free()


def _measure_pair(record: Record, sizes: Sizes, target: LanguageModel, draft: LanguageModel) -> None:
    names = {"target": target.name, "draft": draft.name}
    few = sizes.batches[:2]
    for batch in sizes.batches:
        record.attempt("rows", names | {"batch": batch}, Pair(target, draft, sizes, batch).row)
    for batch in sizes.batches:
        row = names | {"batch": batch}
        record.attempt("captured", row, lambda batch=batch: captured_row(target, draft, sizes, batch))
    one = Pair(target, draft, sizes, 1)
    record.attempt("sampled", names | {"batch": 1}, lambda: one.decoding(Sampling()))
    for batch in few:
        pair = Pair(target, draft, dataclasses.replace(sizes, prompt=16), batch)
        for sampling in (GREEDY, Sampling()):
            row = names | {"batch": batch, "temperature": sampling.temperature}
            record.attempt("host_syncs", row, lambda pair=pair, sampling=sampling: pair.syncs(sampling))
    # The draft as its own target: nothing is rejected but for rounding, so this shows the bookkeeping.
    for batch in few:
        row = {"target": draft.name, "draft": draft.name, "batch": batch}
        record.attempt("same_model", row, Pair(draft, draft, sizes, batch).row)
