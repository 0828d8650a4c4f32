"""The prompts that a bench scores."""

from __future__ import annotations

from collections.abc import Sequence

from specdistill.data.batch import Example
from specdistill.data.prompts import Prompt, load_prompts, spread_over_categories
from specdistill.decoding.self_prompts import Weights, prompts_file
from specdistill.evaluation.config import MeasureConfig
from specdistill.progress import Progress


def scored_prompts(config: MeasureConfig, progress: Progress, *, target_is_present: bool = True) -> list[Prompt]:
    """Reads the prompts, or lets the target write them (held-out ones, where --prompts does not say which).

    Args:
        config: Prompts, models and machine.
        progress: Where a bar and remarks go.
        target_is_present: Whether the target's weights can be loaded here.

    Raises:
        SpecdistillError: The prompts are missing or malformed, or the target can't write any.
    """
    weights = Weights(config.machine.device, config.weights.dtype) if target_is_present else None
    own, most, base = config.self_prompts, config.num_prompts, config.adapter.target_base
    source = prompts_file(config.prompts, "heldout", own, config.chat, config.target, weights, progress, most, base)
    return spread_over_categories(load_prompts(source, config.chat), config.num_prompts)


def answered_prompts(prompts: Sequence[Prompt], answers: Sequence[Example]) -> list[Prompt]:
    """The prompts of answers that were scored; all but those that a Ctrl-C left out."""
    answered = {answer.prompt_id for answer in answers}
    return [prompt for prompt in prompts if prompt.id in answered]
