"""Parallel drafts (PARD, arXiv 2504.18583): models that guess several tokens in one pass behind mask tokens.

On disk one is an ordinary checkpoint whose config.json names the mask token. Engines that know nothing of it use the
model one token at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

from specdistill.errors import ModelError
from specdistill.settings.checks import LONGEST_DRAFT

if TYPE_CHECKING:
    from transformers import PretrainedConfig

MASK_KEYS = ("mask_token_id", "pard_token", "ptd_token_id")
"""Keys of config.json that name the mask token, in vLLM 0.32's order; we write `pard_token`."""
TRAINED_KEY = "parallel_draft_tokens"
"""Key of config.json for the number of tokens that the draft was trained to guess; specdistill's own."""


@dataclass(frozen=True)
class ParallelDrafting:
    """How a model drafts K tokens in one pass.

    It reads the tokens kept since its last pass, the newest one last, and K - 1 mask tokens at the positions that
    follow. The newest token's row proposes the first token, the row of mask i proposes token i + 1.
    """

    mask_id: int
    """Id of the mask token. It has a row in the embedding, and may lie beyond the tokenizer's ids."""
    trained_tokens: int | None = None
    """Number of tokens (K) that it was trained to guess; None for checkpoints that don't say."""

    @classmethod
    def of_config(cls, config: PretrainedConfig | SimpleNamespace, where: str) -> ParallelDrafting | None:
        """Reads it from a model's configuration; None where that names no mask token.

        Args:
            config: Of a causal language model; or the contents of its config.json as attributes.
            where: Names the model in messages, such as `--draft NAME`.

        Raises:
            ModelError: The mask token has no row in the embedding, two keys name different ones, or the number of
                tokens is one that train-draft takes no draft of.
        """
        named = {key: getattr(config, key) for key in MASK_KEYS if _names_mask(config, key)}
        if not named:
            return None
        key, mask_id = next(iter(named.items()))
        if len(set(map(repr, named.values()))) > 1:
            listed = ", ".join(f"{key} {value}" for key, value in named.items())
            raise ModelError(f"{where} names different mask tokens in its config.json: {listed}; keep one of them")
        rows = int(config.vocab_size)
        if not _is_int(mask_id) or not 0 <= mask_id < rows:
            raise ModelError(
                f"{where} has {key} {mask_id!r} in its config.json, which must be one of the embedding's ids, 0 to "
                f"{rows - 1}; correct it, or remove it to draft one token per pass"
            )
        trained = getattr(config, TRAINED_KEY, None)
        if trained is not None and not (_is_int(trained) and 2 <= trained <= LONGEST_DRAFT):
            raise ModelError(
                f"{where} has {TRAINED_KEY} {trained!r} in its config.json, which must be from 2 to {LONGEST_DRAFT}; "
                "correct or remove it"
            )
        return cls(mask_id, trained)

    def beyond(self, asked: int, asker: str) -> str | None:
        """Says that more tokens are asked for than it was trained to guess; None where they are not.

        Args:
            asked: Draft tokens per verification.
            asker: Who asks for them, such as `this bench`.
        """
        if self.trained_tokens is None or asked <= self.trained_tokens:
            return None
        return trained_for(self.trained_tokens, asked, asker)

    def write_to(self, config: PretrainedConfig) -> None:
        """Writes it into a model's configuration, in place."""
        self.remove_from(config)
        config.pard_token = self.mask_id
        if self.trained_tokens is not None:
            config.parallel_draft_tokens = self.trained_tokens

    @staticmethod
    def remove_from(config: PretrainedConfig) -> None:
        """Takes it out of a model's configuration, in place: the model is then an ordinary draft."""
        for key in (*MASK_KEYS, TRAINED_KEY):
            if _names_mask(config, key):
                delattr(config, key)


def trained_for(trained: int, asked: int, asker: str) -> str:
    """Says that a draft was trained for another number of tokens.

    Args:
        trained: Tokens that it was trained to guess.
        asked: Draft tokens per verification.
        asker: Who asks for them, such as `this launch`.
    """
    return f"the draft was trained to guess {trained} tokens in one pass, and {asker} asks for {asked}"


def _names_mask(config: PretrainedConfig | SimpleNamespace, key: str) -> bool:
    # Some families have a mask token of their own (XLM), which is for other things.
    return not hasattr(type(config), key) and getattr(config, key, None) is not None


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
