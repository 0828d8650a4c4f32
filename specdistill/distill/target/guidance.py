"""Classifier-free guidance of the target, from its settings."""

from __future__ import annotations

from specdistill.data.prompts import Prompt, check_ids, encode, in_chat
from specdistill.decoding import Guidance
from specdistill.distill.target.settings import TargetSettings
from specdistill.models import LanguageModel
from specdistill.settings.chat import ChatSettings


def build_guidance(settings: TargetSettings, target: LanguageModel, chat: ChatSettings) -> Guidance | None:
    """Encodes the negative prompt as all others are; None without one.

    Raises:
        ConfigError: The target can't be guided.
        DataError: The prompt can't be encoded, or holds a token without weights.
    """
    if settings.negative_prompt is None:
        return None
    prompt = Prompt("negative", ({"role": "user", "content": settings.negative_prompt},), place="--negative-prompt")
    prompt = in_chat(prompt, chat, "--negative-prompt")
    ids = encode(prompt, target.tokenizer)
    check_ids(ids, target.tokenizer, target.vocab_size, "--negative-prompt")
    guidance = Guidance(tuple(ids), settings.guidance)
    guidance.check(target)
    return guidance
