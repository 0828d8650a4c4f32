"""Verify cost of a mixture of experts: checking n tokens reads every expert that at least one of them is sent to.

A pass that is bound by memory takes as long as reading its weights: those that every token reads, and the experts of
all its tokens, each once. So in plain target steps, with D(n) the expected number of distinct experts of a layer,

    verify_cost(n) = shared part + expert part * D(n) / D(1)

D comes from the router's own choices over the target's answers. `plan_experts` has it for a router that prefers none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn.functional import one_hot

from specdistill.data.batch import Example
from specdistill.evaluation.acceptance import HiddenCache, answer_hidden_states
from specdistill.models import LanguageModel
from specdistill.models.experts import RoutingRecorder, expert_layers, step_bytes


@dataclass(frozen=True, kw_only=True)
class ExpertCosts:
    """Predicted costs of checking several tokens in one pass of a mixture of experts, from its router's choices."""

    experts: int
    """Experts of a layer."""
    experts_per_token: float
    """Experts of a layer that one token is sent to."""
    active_parameters: int
    """Parameters of the target that one token uses, embedding included; `target.parameters` are all of them."""
    shared: float
    """Share of a plain target step's weights, in bytes, that does not depend on the router."""
    distinct_experts: dict[int, float]
    """Tokens in one target pass -> distinct experts that they are sent to: expected over runs of consecutive tokens of
    the target's answers, `setup.batch_size` rows of them at a time, mean over layers."""
    verify_cost: dict[int, float]
    """Tokens in one target pass -> its time in plain target steps, if reading weights is all that takes time;
    `economics.verify_cost` is the measured one."""


class Routing:
    """The router's choices over answers, counted.

    Args:
        model: The target.
        longest: Runs of 1, 2, ... up to this many consecutive tokens are counted.
    """

    def __init__(self, model: LanguageModel, longest: int) -> None:
        self._layers = expert_layers(model)
        self._step_bytes, self._parameters = step_bytes(model), model.num_parameters
        self._hits = [np.zeros((longest, layer.count)) for layer in self._layers]
        """Per layer, [run length - 1, expert]: runs that have a token which is sent to the expert."""
        self._runs = np.zeros(longest)

    def add(self, ids: Sequence[Tensor]) -> None:
        """Counts one answer.

        Args:
            ids: Per layer int64 [tokens, experts per token]. An id beyond the experts stands for none.
        """
        tokens = len(ids[0])
        self._runs += np.maximum(0, tokens - np.arange(len(self._runs)))
        for layer, hits, chosen in zip(self._layers, self._hits, ids, strict=True):
            own = one_hot(chosen.clamp(max=layer.count), layer.count + 1).amax(1)[:, : layer.count].bool().numpy()
            touched = own
            for number in range(min(len(hits), tokens)):
                if number:
                    # A run of n + 1 tokens is one of n and the token behind it.
                    touched = touched[:-1] | own[number:]
                hits[number] += touched.sum(0)

    def costs(self, batch_size: int) -> ExpertCosts | None:
        """Expected costs of a pass over several rows, whose texts have nothing to do with each other.

        Args:
            batch_size: Rows per pass.

        Returns:
            None where no answer was counted.
        """
        lengths = [number + 1 for number, runs in enumerate(self._runs) if runs]
        if not lengths:
            return None
        distinct = {length: self._distinct(length, batch_size) for length in lengths}
        size = np.array([layer.weight_bytes for layer in self._layers])
        read = {length: self._step_bytes + float(size @ values) for length, values in distinct.items()}
        one = self._distinct(1, 1)
        idle = sum((layer.count - used) * layer.parameters for layer, used in zip(self._layers, one, strict=True))
        return ExpertCosts(
            experts=self._layers[0].count,
            experts_per_token=float(one.mean()),
            active_parameters=round(self._parameters - idle),
            shared=self._step_bytes / read[1],
            distinct_experts={length: float(values.mean()) for length, values in distinct.items()},
            verify_cost={length: value / read[1] for length, value in read.items()},
        )

    def _distinct(self, length: int, rows: int) -> np.ndarray:
        """Expected number of distinct experts of each layer."""
        shares = [hits[length - 1] / self._runs[length - 1] for hits in self._hits]
        return np.array([(1 - (1 - share) ** rows).sum() for share in shares])


def routed_hidden_states(model: LanguageModel, answer: Example, routing: Routing) -> HiddenCache:
    """The target's pass over one of its answers, with its routing counted.

    Returns:
        The answer's entry of a cache of hidden states.
    """
    with RoutingRecorder(model) as recorder:
        states: HiddenCache = {}
        answer_hidden_states(model, [answer], states)
        ids = recorder.take()
    if ids is not None:
        routing.add([layer[len(answer.prompt_ids) :] for layer in ids])
    return states
