"""The bench report's `load`; see `report`."""

from __future__ import annotations

from dataclasses import dataclass

from specdistill.evaluation.statistics import Estimate


@dataclass(frozen=True, kw_only=True)
class LoadRow:
    """One batch size. Costs are in plain target steps of that same batch."""

    num_draft_tokens: int
    """Draft tokens per verification: --num-draft-tokens, else the length with the highest predicted speed-up here."""
    verify_cost: float | None
    """Time of the target pass that checks them; null for real engines, where only whole rounds can be seen."""
    round_cost: float
    """Time of drafting and checking them."""
    predicted_speedup: float
    """Speed-up from predicted tokens per target call and `round_cost`."""
    speedup: Estimate
    """Speed-up, measured; plain and speculative decoding in turn. Its interval is over batches."""
    baseline_tokens_per_second: float
    """Tokens per second of the target alone, all rows together."""
    speculative_tokens_per_second: float
    """The same with the draft."""
    batches: int
    """Timed batches."""
    prompts: int
    """Different prompts in them. Where the batches need more, prompts are taken again in another order and with other
    seeds: the interval is then about this machine and these prompts, less about others."""
    predicted_by_length: dict[int, float] | None = None
    """Draft length -> predicted speed-up; absent for real engines."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """Speed over the batch: eight rows at a time leave a draft less idle time to use than one."""

    batch: dict[int, LoadRow]
    """Batch size (requests at a time, for real engines) -> its row."""
    stops_paying_at: int | None
    """Smallest measured batch from which on no interval of the speed-up lies above 1; null where the draft pays at the
    largest one, or where there are no intervals."""
    predicted_to_stop_at: int | None
    """Smallest measured batch from which on the predicted speed-up is at most 1; null where it is above at the largest
    one."""
    crossing: float | None
    """Batch at which the measured speed-up falls to 1, between the measured ones on a log scale; null where it does not
    fall through 1."""
    predicted_crossing: float | None
    """The same for the predicted speed-up."""
    why: str
    """The result in one sentence."""
    num_speculative_tokens_per_batch_size: list[tuple[int, int, int]] | None = None
    """For vLLM's setting of this name: first batch, last batch, draft tokens. Each batch gets the length with the
    highest predicted speed-up, costs between measured batches interpolated; 0 where none pays and from
    `stops_paying_at` on. Absent for real engines, and where drafting pays at no batch."""
