"""The mask token of a parallel draft: an id that no text holds, and its rows in the draft's embedding and head."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from specdistill.errors import ConfigError
from specdistill.files.parallel_drafting import ParallelDrafting
from specdistill.models import vocabulary
from specdistill.models.language_model import LanguageModel
from specdistill.models.load import ModelSource
from specdistill.models.stop_ids import eos_ids, stored_generation_config

_RESERVED = re.compile(r"reserv|unused|dummy|placeholder|extra_id|control_\d|special_\d", re.IGNORECASE)
"""Names of tokens that a vocabulary keeps for its users."""


def choose_mask_token(target: ModelSource, draft: ModelSource, wanted: int | None, used: Collection[int]) -> int:
    """Chooses an id that text never holds. Needs no weights.

    The draft's own mask token comes first, where it has one. Then a token that the vocabulary reserves, a row of the
    target's embedding beyond the tokenizer's ids, another special token that nothing uses, and last one row more than
    the target has.

    Args:
        target: The target; engines want a draft with as many rows.
        draft: The draft, with the target's tokenizer.
        wanted: The id that the user names; None leaves the choice open.
        used: Ids of the prompts.

    Raises:
        ConfigError: The wanted id has no row, or text holds it.
    """
    ordinary = _ordinary(target, draft) | set(used)
    if wanted is not None:
        rows = max(target.rows, draft.rows)
        if wanted >= rows:
            raise ConfigError(f"--mask-token {wanted} has no row in the embedding, whose ids end at {rows - 1}")
        if wanted in ordinary:
            raise ConfigError(
                f"--mask-token {wanted} is {target.tokenizer.convert_ids_to_tokens(wanted)!r}, which texts hold; leave "
                "it out, and an unused id is chosen"
            )
        return wanted
    trained = ParallelDrafting.of_config(draft.config, f"--draft {draft.name}")
    if trained is not None:
        return trained.mask_id
    special = sorted(_special_tokens(target), key=lambda token: token[1])
    free = [(name, number) for name, number in special if number not in ordinary and number < target.rows]
    reserved = next((number for name, number in free if _RESERVED.search(name)), None)
    if reserved is not None:
        return reserved
    if target.vocab_size < target.rows:
        return target.vocab_size
    return free[-1][1] if free else target.rows


def _special_tokens(source: ModelSource) -> list[tuple[str, int]]:
    """(text, id) of the tokens that the tokenizer never makes from ordinary text."""
    decoder = cast(PreTrainedTokenizerFast, source.tokenizer).added_tokens_decoder
    return [(token.content, number) for number, token in decoder.items() if token.special]


def _ordinary(target: ModelSource, draft: ModelSource) -> set[int]:
    """Ids that texts hold or that have a meaning of their own: words, stop ids, and what chat templates write."""
    special = dict(_special_tokens(target))
    meant = _named_ids(target)
    for source in (target, draft):
        stored = stored_generation_config(source.location)
        meant.update(*map(eos_ids, (source.config, source.tokenizer, stored)))
    templates = str(target.tokenizer.chat_template or "")
    meant |= {number for name, number in special.items() if name in templates}
    return meant | set(target.tokenizer.get_vocab().values()).difference(special.values())


def _named_ids(source: ModelSource) -> set[int]:
    """Ids of the tokens with a role: begin, end, padding, unknown and the like."""
    names = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
    ids = (getattr(source.tokenizer, f"{name}_token_id", None) for name in names)
    return {number for number in ids if number is not None}


def install_mask_token(draft: LanguageModel, drafting: ParallelDrafting, rows: int) -> None:
    """Makes a model a parallel draft, in place: its configuration says so, and the mask token has rows of its own.

    A new mask token begins as the mean of all tokens. A draft that has it already keeps it.

    Args:
        draft: Its weights change.
        drafting: The mask token, and how many tokens are guessed.
        rows: Rows of the target's head; the draft gets as many at least.
    """
    model, mask_id = draft.model, drafting.mask_id
    before = draft.parallel
    is_new = before is None or before.mask_id != mask_id
    draft.learns_to_guess = is_new
    drafting.write_to(model.config)
    wanted = max(rows, mask_id + 1)
    if draft.head_weight.shape[0] < wanted:
        vocabulary.resize_to(model, wanted, draft.vocab_size)
        drafting.write_to(model.config)
    if is_new:
        embedding, head = embedding_weight(model), draft.head_weight
        with torch.no_grad():
            embedding[mask_id] = embedding[: draft.vocab_size].mean(0)
            if mask_id < draft.vocab_size and head is not embedding:
                head[mask_id] = head[: draft.vocab_size].mean(0)
    draft.weights_changed()


def embedding_weight(model: PreTrainedModel) -> Tensor:
    """Rows of the input embedding, [padded vocab, hidden]."""
    return cast(Tensor, model.get_input_embeddings().weight)
