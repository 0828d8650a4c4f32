"""Classifier-free guidance of the target, from its settings."""

from __future__ import annotations

from specdistill.data.prompts import Prompt, encode
from specdistill.decoding import Guidance
from specdistill.distill.target.settings import TargetSettings
from specdistill.models import LanguageModel


def build_guidance(settings: TargetSettings, target: LanguageModel) -> Guidance | None:
    """Encodes the negative prompt; None without one.

    Raises:
        ConfigError: The target can't be guided.
    """
    if settings.negative_prompt is None:
        return None
    prompt = Prompt("negative", ({"role": "user", "content": settings.negative_prompt},))
    guidance = Guidance(tuple(encode(prompt, target.tokenizer)), settings.guidance)
    guidance.check(target)
    return guidance
