"""The cost of answers, and how many of a second model's are worth the target's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from specdistill.data.batch import Example
from specdistill.distill.answers.generate_config import ComparisonSettings, check_copies
from specdistill.models import LanguageModel


def token_cost(settings: ComparisonSettings, model: LanguageModel, role: str) -> float:
    """Cost of one sampled token: FLOPs (2 x parameters), or its price.

    Source: Bansal et al. 2024 (arXiv 2408.16737), compute-matched sampling.
    """
    if settings.match == "cost":
        return settings.token_price(role)
    return 2.0 * model.num_parameters


def matched_copies(
    settings: ComparisonSettings,
    models: Mapping[str, LanguageModel],
    target_answers: Sequence[Example],
    first: Sequence[Example],
) -> int:
    """How often the other model may answer each prompt for what the target's answers cost; at least once.

    Args:
        settings: What is matched.
        models: target and other.
        target_answers: All of the target's.
        first: The other model's first answers: how long its answers are is measured on them.

    Raises:
        ConfigError: The budget buys more than anybody wants; nothing is written then.
    """
    budget = num_tokens(target_answers) * token_cost(settings, models["target"], "target")
    once = num_tokens(first) * token_cost(settings, models["other"], "other")
    check_copies(budget / once)
    return max(1, int(budget / once))


def num_tokens(examples: Sequence[Example]) -> int:
    """Answer tokens of all examples."""
    return sum(len(example.answer_ids) for example in examples)
