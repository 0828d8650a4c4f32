"""Compares the vocabularies of two tokenizers, and fits embeddings and heads to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from specdistill.errors import IncompatibleModelsError, ModelError
from specdistill.files import atomic

KEPT_IDS_FILE = "draft_vocabulary.json"
"""File in a draft's directory with the ids of its trimmed output head. The weights keep the full vocabulary."""


def real_vocab_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Largest id that the tokenizer can produce, plus 1. Heads are often padded to more rows."""
    return max(tokenizer.get_vocab().values()) + 1


def usable_size(tokenizer: PreTrainedTokenizerBase, rows: int) -> int:
    """Number of ids that a model can read and write: ids of the tokenizer beyond the head have no weights.

    Args:
        tokenizer: The model's tokenizer.
        rows: Rows of its embedding and head.
    """
    return min(real_vocab_size(tokenizer), rows)


def check_ordinary_tokens(tokenizer: PreTrainedTokenizerBase, rows: int, where: str) -> None:
    """Refuses a tokenizer whose ordinary tokens don't fit the head. Added ones may: a Gemma 3 text model has no image.

    Args:
        tokenizer: The model's tokenizer.
        rows: Rows of its embedding and head.
        where: The model as messages name it, such as `--target NAME`.

    Raises:
        ModelError: A token that was not added has no row.
    """
    if real_vocab_size(tokenizer) <= rows:
        return
    added = cast(PreTrainedTokenizerFast, tokenizer).get_added_vocab()
    beyond = {number: token for token, number in tokenizer.get_vocab().items() if number >= rows and token not in added}
    if beyond:
        first = min(beyond)
        raise ModelError(
            f"{where}: the tokenizer produces id {first} ({beyond[first]!r}) but the head has {rows} rows; the "
            "tokenizer files belong to another model"
        )


def same_tokens(
    target: PreTrainedTokenizerBase, draft: PreTrainedTokenizerBase, target_rows: int | None, draft_rows: int | None
) -> bool:
    """Whether two models use the same ids. Tokens beyond a model's own head don't count, since it can't produce them.

    Args:
        target, draft: The tokenizers.
        target_rows, draft_rows: Rows of the heads; None counts every token.
    """
    if target.get_vocab() == draft.get_vocab():
        return True
    return _tokens(target, target_rows) == _tokens(draft, draft_rows)


def check_same_vocabulary(
    target: PreTrainedTokenizerBase,
    draft: PreTrainedTokenizerBase,
    target_name: str,
    draft_name: str,
    target_rows: int | None = None,
    draft_rows: int | None = None,
) -> None:
    """Refuses a pair whose ids mean different tokens, since the target could accept no proposal of such a draft.

    Args:
        target, draft: The tokenizers.
        target_name, draft_name: Names of the models, for the message.
        target_rows, draft_rows: Rows of the heads; tokens beyond a head don't count. None counts every token.

    Raises:
        IncompatibleModelsError: The tokenizers differ. The message names the first id with different tokens.
    """
    if same_tokens(target, draft, target_rows, draft_rows):
        return
    target_tokens, draft_tokens = _tokens(target, target_rows), _tokens(draft, draft_rows)
    first = min(
        token_id
        for token_id in target_tokens | draft_tokens
        if target_tokens.get(token_id) != draft_tokens.get(token_id)
    )
    raise IncompatibleModelsError(
        f"target and draft have different tokenizers: id {first} is {target_tokens.get(first, 'unused')!r} in "
        f"{target_name} ({len(target_tokens)} tokens) and {draft_tokens.get(first, 'unused')!r} in {draft_name} "
        f"({len(draft_tokens)} tokens); use a draft of the target's family, or make one with 'specdistill init-draft', "
        "whose --donor gives a model the target's tokenizer; "
        "a draft of another tokenizer works in transformers alone: 'specdistill bench --engine transformers' measures "
        "it, 'specdistill export --format transformers' writes it"
    )


def _tokens(tokenizer: PreTrainedTokenizerBase, rows: int | None) -> dict[int, str]:
    return {number: token for token, number in tokenizer.get_vocab().items() if rows is None or number < rows}


def resize_to(model: PreTrainedModel, vocab_size: int, real_size: int) -> None:
    """Pads or trims embedding and head to `vocab_size` rows in place; engines want a draft with the target's size.

    Padding rows of the head point away from the hidden states, so that their ids get almost no probability from an
    engine that samples over padding.

    Args:
        model: Changed in place.
        vocab_size: Rows to have afterwards.
        real_size: Number of ids of the tokenizer; further rows are padding.

    Raises:
        IncompatibleModelsError: `vocab_size` is smaller than `real_size`.
    """
    if vocab_size < real_size:
        raise IncompatibleModelsError(
            f"the target's head has {vocab_size} rows, but the tokenizer produces {real_size} ids; "
            "the target's config and tokenizer belong to different models; check the directory's files"
        )
    if _head(model).shape[0] != vocab_size:
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
    model.config.vocab_size = vocab_size
    padding = slice(real_size, vocab_size)
    if vocab_size == real_size:
        return
    with torch.no_grad():
        _head(model)[padding] = _away_from_hidden_states(model, _head(model), real_size)


def _head(model: PreTrainedModel) -> Tensor:
    head = model.get_output_embeddings()
    assert head is not None, "causal models have an output head"
    return cast(Tensor, head.weight)


def _away_from_hidden_states(model: PreTrainedModel, head: Tensor, real_size: int) -> Tensor:
    ids = torch.arange(0, real_size, max(1, real_size // 64), device=head.device)[None, :64]
    was_training = model.training
    model.eval()
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    model.train(was_training)
    mean = hidden.mean(0)
    longest = head[:real_size].norm(dim=-1).max()
    return -nn.functional.normalize(mean, dim=0) * longest


def save_kept_ids(directory: Path, kept_ids: Tensor, source: str) -> None:
    """Writes the ids of a trimmed head into the directory of the weights.

    Args:
        directory: Directory of the draft.
        kept_ids: int64 [N].
        source: Short description of how the ids were chosen.

    Raises:
        OutputError: The disk is full, or the directory can't be written.
    """
    content = {"kept_ids": kept_ids.tolist(), "source": source}
    atomic.write_text(directory / KEPT_IDS_FILE, json.dumps(content) + "\n")


def load_kept_ids(directory: Path | None, vocab_size: int) -> Tensor | None:
    """Reads the ids that `save_kept_ids` wrote.

    Args:
        directory: Directory of the draft, or None.
        vocab_size: Number of ids of the tokenizer.

    Returns:
        int64 [N], ascending; None if the draft has no trimmed head.

    Raises:
        ModelError: The file is damaged or names ids outside the vocabulary.
    """
    path = None if directory is None else directory / KEPT_IDS_FILE
    if path is None or not path.is_file():
        return None
    try:
        ids = torch.tensor(sorted(set(json.loads(path.read_text())["kept_ids"])), dtype=torch.int64)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged ({error}); cut the draft again with 'specdistill init-draft'") from error
    if not len(ids) or ids[0] < 0 or ids[-1] >= vocab_size:
        raise ModelError(
            f"{path} names ids outside 0..{vocab_size - 1}, so it belongs to another tokenizer; cut the draft again "
            "with 'specdistill init-draft'"
        )
    return ids
