"""Do two tokenizers mean the same thing by an id, and how many ids are real."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specdistill.errors import IncompatibleModelsError, ModelError
from specdistill.files import atomic

KEPT_IDS_FILE = "draft_vocabulary.json"
"""In a draft's directory: the ids of its trimmed output head. The weights beside it keep the full vocabulary."""


def real_vocab_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id that the tokenizer can produce; heads are often padded beyond it."""
    return max(tokenizer.get_vocab().values()) + 1


def check_same_vocabulary(
    target: PreTrainedTokenizerBase, draft: PreTrainedTokenizerBase, target_name: str, draft_name: str
) -> None:
    """Refuses a pair whose ids mean different tokens; a draft's proposals are ids, so nothing could be accepted.

    Raises:
        IncompatibleModelsError: Naming both tokenizers and the first id whose token differs.
    """
    ours, theirs = target.get_vocab(), draft.get_vocab()
    if ours == theirs:
        return
    by_id_ours = {number: token for token, number in ours.items()}
    by_id_theirs = {number: token for token, number in theirs.items()}
    first = min(number for number in by_id_ours | by_id_theirs if by_id_ours.get(number) != by_id_theirs.get(number))
    raise IncompatibleModelsError(
        f"target and draft have different tokenizers: id {first} is {by_id_ours.get(first, 'unused')!r} in "
        f"{target_name} ({len(ours)} tokens) and {by_id_theirs.get(first, 'unused')!r} in {draft_name} "
        f"({len(theirs)} tokens); use a draft of the target's family, or cut one with 'specdistill init-draft'"
    )


def resize_to(model: PreTrainedModel, vocab_size: int, real_size: int) -> None:
    """Pads or trims embedding and head to `vocab_size` rows in place, as engines demand of a draft.

    Rows beyond the tokenizer's ids point away from where hidden states lie, so that an engine which does sample over
    padding gives them next to no probability.

    Raises:
        IncompatibleModelsError: `vocab_size` would cut real tokens off.
    """
    if vocab_size < real_size:
        raise IncompatibleModelsError(
            f"the target's head has {vocab_size} rows, but the tokenizer produces {real_size} ids; "
            "the target's config is not that of its tokenizer"
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
    """Writes the ids of a trimmed head beside the weights."""
    content = {"kept_ids": kept_ids.tolist(), "source": source}
    atomic.write_text(directory / KEPT_IDS_FILE, json.dumps(content) + "\n")


def load_kept_ids(directory: Path | None, vocab_size: int) -> Tensor | None:
    """Reads what `save_kept_ids` wrote; None where there is no such file.

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
        raise ModelError(f"{path} names ids outside 0..{vocab_size - 1}; it belongs to another tokenizer")
    return ids
