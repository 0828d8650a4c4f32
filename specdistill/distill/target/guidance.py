"""Classifier-free guidance of the target, from its settings."""

from __future__ import annotations

from specdistill.data.prompts import Prompt, encode, in_chat
from specdistill.decoding import Guidance
from specdistill.distill.target.settings import TargetSettings
from specdistill.models import LanguageModel
from specdistill.settings.chat import ChatSettings


def build_guidance(settings: TargetSettings, target: LanguageModel, chat: ChatSettings) -> Guidance | None:
    """Encodes the negative prompt as all others are; None without one.

    Raises:
        ConfigError: The target can't be guided.
    """
    if settings.negative_prompt is None:
        return None
    prompt = Prompt("negative", ({"role": "user", "content": settings.negative_prompt},))
    prompt = in_chat(prompt, chat, "--negative-prompt")
    guidance = Guidance(tuple(encode(prompt, target.tokenizer)), settings.guidance)
    guidance.check(target)
    return guidance
