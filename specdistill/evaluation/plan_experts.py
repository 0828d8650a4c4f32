"""A mixture of experts in `plan`: the weights that a pass over some tokens reads. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from specdistill.evaluation.plan_config import PlanConfig

_CHECKED = 8
"""Most tokens whose check is planned."""


@dataclass(frozen=True, kw_only=True)
class PlannedExperts:
    """A target that is a mixture of experts, under a router that prefers none."""

    active_parameters: float
    """Parameters that one token uses."""
    parameters: float
    """All parameters."""
    shared_parameters: float
    """Parameters that every token uses."""
    distinct_experts: dict[int, float]
    """Tokens in one pass -> expected number of distinct experts of a layer."""
    verify_cost: dict[int, float]
    """Tokens in one pass -> its time in steps of one token, if reading weights is all that takes time."""


def uniform_distinct(experts: int, per_token: int, tokens: float) -> float:
    """Expected number of distinct experts of n tokens that are each sent to k of E experts, all equally likely."""
    return experts * (1 - (1 - per_token / experts) ** tokens)


def planned_experts(config: PlanConfig) -> PlannedExperts:
    """Costs of checking tokens: the active parameters are the shared ones and the experts of one token."""
    tokens = range(1, _CHECKED + 1)
    experts, per_token = config.models.experts, config.models.experts_per_token
    return PlannedExperts(
        active_parameters=config.target,
        parameters=config.target_resident,
        shared_parameters=config.target - per_token * _expert_parameters(config),
        distinct_experts={n: uniform_distinct(experts, per_token, n) for n in tokens},
        verify_cost={n: weights_read(config, n) / config.target for n in tokens},
    )


def weights_read(config: PlanConfig, tokens: int) -> float:
    """Parameters of the target that a pass reads; of several tokens all, in a mixture whose experts are not known."""
    models = config.models
    if not models.experts:
        return config.target if tokens == 1 else config.target_resident
    more = uniform_distinct(models.experts, models.experts_per_token, tokens) - models.experts_per_token
    return config.target + more * _expert_parameters(config)


def _expert_parameters(config: PlanConfig) -> float:
    """Parameters of one expert in all layers together: what the inactive ones hold, evenly."""
    models = config.models
    return (config.target_resident - config.target) / (models.experts - models.experts_per_token)
