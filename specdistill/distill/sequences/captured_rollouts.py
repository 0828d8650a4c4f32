"""Captures the steps that write a run's answers (--capture-steps), where they are faster and give the same states."""

from __future__ import annotations

from collections.abc import Callable

from specdistill.decoding.step_choice import capture_steps
from specdistill.models import ModelPair

_OWN_TEXT = ("gkd", "distillspec", "skd")
"""Methods whose draft may write while it trains. Its weights change in place, so that its graphs stay right."""


def capture_rollouts(
    pair: ModelPair, method: str, target_weights: bool, batch_size: int, say: Callable[[str], None]
) -> None:
    """Lets both models' steps run as graphs, and says how each one's run.

    Args:
        pair: Target and draft as they write: with their adapters and mask tokens, and never in shards.
        method: Name of the method.
        target_weights: Whether the target has any.
        batch_size: Answers that are written together.
        say: Where the choices are named.
    """
    models = {"target": pair.target} if target_weights else {}
    if method in _OWN_TEXT:
        models["draft"] = pair.draft
    choices = {role: capture_steps(model, batch_size=batch_size) for role, model in models.items()}
    if not choices:
        say("no steps are captured: a server writes all answers")
        return
    say("; ".join(f"steps of the {role}: {choice.line()}" for role, choice in choices.items()))
