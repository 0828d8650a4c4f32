"""Classifier-free guidance moves a model's distribution away from its answer to a negative prompt."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from specdistill.data.prompts import Prompt, check_ids, encode, in_chat
from specdistill.errors import ConfigError
from specdistill.models import LanguageModel
from specdistill.settings.chat import ChatSettings
from specdistill.settings.guidance import GuidanceSettings


@dataclass(frozen=True)
class Guidance:
    """Guidance by a negative prompt: log p'(y|x) = (1 + weight) log p(y|x) - weight log p(y|negative) + constant.

    A softmax ignores constants, and an output head without softcap is linear. So mixing the two hidden states in the
    same way gives the logits of exactly that distribution, and code after the hidden states needs no case for guidance.

    Source: Sanchez et al. 2023 (arXiv 2306.17806).
    """

    negative_ids: tuple[int, ...]
    """Token ids of the negative prompt, in the target's chat template."""
    weight: float
    """Strength of the guidance; 0 turns it off."""

    def combine(self, hidden: Tensor, negative: Tensor) -> Tensor:
        """Mixes the hidden states after the prompt and after the negative prompt; both may have any shape."""
        return (1 + self.weight) * hidden - self.weight * negative

    def check(self, model: LanguageModel) -> None:
        """Refuses a model whose logits are not linear in its hidden states.

        Raises:
            ConfigError: The model caps its logits.
        """
        if model.softcap is not None:
            raise ConfigError(f"--guidance can't be used with {model.name}, whose logits are capped (Gemma 2)")


def build_guidance(
    settings: GuidanceSettings, target: LanguageModel, chat: ChatSettings, max_new_tokens: int
) -> Guidance | None:
    """Encodes the negative prompt as all others are; None without one.

    Args:
        settings: Weight and negative prompt.
        target: The model that is guided.
        chat: How prompts are rendered.
        max_new_tokens: Room that an answer needs after the negative prompt.

    Raises:
        ConfigError: The target can't be guided, or has no room for the negative prompt and an answer.
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
    length = len(guidance.negative_ids)
    if length + max_new_tokens > target.max_context:
        raise ConfigError(
            f"--negative-prompt has {length} tokens; with {max_new_tokens} new ones it exceeds the context of "
            f"{target.max_context} of {target.name}; shorten it or lower --max-new-tokens"
        )
    return guidance
