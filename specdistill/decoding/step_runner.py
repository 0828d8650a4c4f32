"""How a model runs the steps of decoding: at once, or as graphs that were captured before.

A step is a function of tensors whose shapes repeat: one pass over a few tokens of every row, or all tokens that a draft
proposes in a round. `CachedModel.step` runs it through the model's runner, and knows nothing of graphs. `EagerSteps`
calls it. `captured_steps` has the runner that captures it once for its shapes, and replays it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple, Protocol

from torch import Tensor

from specdistill.decoding.ragged_cache import RaggedCache
from specdistill.models import LanguageModel

EXTENT = 64
"""Passes attend to a multiple of this many positions; the mask hides those that are not written yet.

So shapes stay the same for 64 steps, and what torch.compile or a CUDA graph has captured serves all of them.
"""


class Shapes(NamedTuple):
    """Numbers that stay the same in all runs of a captured step."""

    extent: int
    """Positions that its passes attend to."""
    shortest: int
    """Tokens that the shortest row keeps, which few families ask for; 0 in captured steps."""


Step = Callable[..., tuple[Tensor, ...]]
"""Takes `Shapes`, the rows' lengths int64 [rows] and inputs [rows, ...]; gives tensors [rows, ...]."""


class StepRunner(Protocol):
    """Runs the steps of one model."""

    captures: bool
    """Whether a step's Python runs once only, so that it pays to put a whole round into one."""

    def new_cache(self, owner: object, model: LanguageModel, batch: int, capacity: int) -> RaggedCache:
        """A cache for the rows of one call.

        Args:
            owner: Who uses it. When nothing refers to the owner any more, the cache may get another one.
            model: Whose layers write it.
            batch: Number of rows.
            capacity: Positions that each of them needs.
        """
        ...

    def run(
        self, cache: RaggedCache, name: Hashable, step: Step, lengths: tuple[int, int], inputs: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Runs one step.

        Args:
            cache: That it writes.
            name: Two steps of one name differ in nothing but their inputs.
            step: The step.
            lengths: Positions that it needs, and tokens that the shortest row keeps.
            inputs: The rows' lengths, and further tensors; one row for each row of the batch.
        """
        ...


class EagerSteps:
    """Calls every step."""

    captures = False

    def new_cache(self, owner: object, model: LanguageModel, batch: int, capacity: int) -> RaggedCache:
        return RaggedCache(model.base_model, model.config, batch, rounded(capacity))

    def run(
        self, cache: RaggedCache, name: Hashable, step: Step, lengths: tuple[int, int], inputs: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        return step(Shapes(rounded(lengths[0]), lengths[1]), *inputs)


EAGER = EagerSteps()


def runner_of(model: LanguageModel) -> StepRunner:
    """The runner that a model was given (see `captured_steps.capture_steps`); else the eager one."""
    return EAGER if model.step_runner is None else model.step_runner


def rounded(positions: int) -> int:
    """The next multiple of `EXTENT`."""
    return -(-positions // EXTENT) * EXTENT
