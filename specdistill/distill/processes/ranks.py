"""The processes that train together: who they are, what each one's share is, who writes files.

Everything random is drawn alike on all ranks and then shared out, so a step trains on the same sequences however many
ranks there are, and no rank ever waits for one that took another turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """This process's place."""

    rank: int = 0
    world: int = 1
    device: str | None = None
    """This rank's own, where there are several; None leaves the choice to --device."""

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes files and reports."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This rank's part of what all ranks hold alike."""
        return list(items[self.rank :: self.world])

    def largest_share(self, count: int) -> int:
        """How many of `count` items the rank with most of them gets."""
        return -(-count // self.world)

    def wait(self) -> None:
        """Until all ranks have come here."""
        if self.world > 1:
            torch.distributed.barrier()

    def total(self, values: list[float]) -> list[float]:
        """Sums over ranks, in float64."""
        if self.world == 1:
            return values
        summed = torch.tensor(values, dtype=torch.float64, device=self.device or "cpu")
        torch.distributed.all_reduce(summed)
        return summed.tolist()

    def gather(self, items: Sequence[Item]) -> list[Item]:
        """All ranks' items, in the order of the ranks."""
        if self.world == 1:
            return list(items)
        parts: list[list[Item]] = [[] for _ in range(self.world)]
        torch.distributed.all_gather_object(parts, list(items))
        return [item for part in parts for item in part]


ALONE = Ranks()


def join(device: str) -> Ranks:
    """Joins the processes that `accelerate launch` or torchrun started; alone where it was neither.

    Args:
        device: --device; `cpu` keeps several ranks on the CPU even where there is a GPU.
    """
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    if state.num_processes == 1:
        return Ranks()
    return Ranks(state.process_index, state.num_processes, str(state.device))
