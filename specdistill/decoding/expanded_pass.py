"""One pass over a text and all its mask tokens, in which each has the hidden state that a pass of its own gives it.

The masks lie behind the text in the batch, at positions that many of them share. Which of them see each other is a mask
of attention [batch, 1, tokens, tokens]: a few bytes for each pair of tokens, so texts should not be much longer than
2,000 tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PretrainedConfig

from specdistill.data.batch import Batch, Example, collate
from specdistill.data.mask_tokens import MaskTokens, every_mask
from specdistill.decoding.masks import masks_by_kind
from specdistill.decoding.proof import state_reason
from specdistill.errors import ModelError
from specdistill.models import LanguageModel
from specdistill.models.output_head import sample_ids

_SAMPLE, _SAMPLED_TOKENS = 9, 3
_TOLERANCE = 1e-3
"""Largest difference allowed between the two ways, as a share of the largest hidden state."""


def expanded_hidden_states(model: LanguageModel, batch: Batch, mask_id: int) -> tuple[Tensor, Tensor]:
    """Hidden states after the final norm, of the real tokens and of the masks.

    Args:
        model: A causal model whose layers are all attention (see `prove_expanded`).
        batch: With masks.
        mask_id: Id of the mask token.

    Returns:
        [batch, length, hidden] and [batch, masks, hidden]; padding has states without meaning.
    """
    assert batch.masks is not None, "the batch has mask tokens"
    length = batch.input_ids.shape[1]
    mask_ids = torch.full_like(batch.masks.anchors, mask_id)
    # Text may be padded beyond the last position, where learned position embeddings end.
    positions, unseen = _layout(length, batch.masks)
    hidden = model.base_model(
        input_ids=torch.cat((batch.input_ids, mask_ids), 1),
        attention_mask=masks_by_kind(model.config, positions, positions, unseen, model.model.dtype),
        position_ids=positions.clamp(max=model.max_context - 1),
        use_cache=False,
    ).last_hidden_state
    return hidden[:, :length], hidden[:, length:]


def _layout(length: int, masks: MaskTokens) -> tuple[Tensor, Tensor]:
    """Positions [batch, tokens], and pairs that no kind of attention may see, bool [batch, tokens, tokens]."""
    text = torch.arange(length, device=masks.anchors.device).expand(len(masks.anchors), -1)
    anchors = torch.cat((text, masks.anchors), 1)
    depths = torch.cat((torch.zeros_like(text), masks.depths), 1)
    is_mask = torch.arange(anchors.shape[1], device=text.device) >= length
    # A real token is its own anchor: the text is seen up to the anchor, by both.
    text_unseen = anchors[:, None, :] > anchors[:, :, None]
    other_anchor = anchors[:, None, :] != anchors[:, :, None]
    later_or_padding = (depths[:, None, :] > depths[:, :, None]) | (depths[:, None, :] == 0)
    return anchors + depths, torch.where(is_mask[None, None], other_anchor | later_or_padding, text_unseen)


def prove_expanded(model: LanguageModel, where: str) -> None:
    """Proves on a few tokens that one pass gives what a pass per anchor gives.

    Args:
        model: Any model; a mask token is not needed yet.
        where: Names the model in messages.

    Raises:
        ModelError: It gives something else, or can't take such a pass.
    """
    refuse_parallel_states(model.config, where)
    ids = sample_ids(model.vocab_size, _SAMPLE)
    prompt, answer, mask_id = ids[:4], ids[4:], ids[0]
    masks = every_mask(len(answer), _SAMPLED_TOKENS)
    example = Example("sample", tuple(prompt), tuple(answer), (0,) * len(answer), masks=masks)
    with model.generating():
        try:
            batch = collate([example]).to(model.device)
            real, behind = expanded_hidden_states(model, batch, mask_id)
            assert batch.masks is not None
            differences, largest = [], real.abs().max()
            for anchor, count in enumerate(masks, len(prompt) - 1):
                text = torch.tensor([[*ids[: anchor + 1], *[mask_id] * count]], device=model.device)
                alone = model.hidden_states(text)[0, anchor:]
                own = (batch.masks.anchors[0] == anchor) & batch.masks.real[0]
                together = torch.cat((real[0, anchor : anchor + 1], behind[0, own]))
                differences.append((alone - together).abs().max() / largest)
        except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
            raise _unfit(where, model, f"it takes no attention mask of its own ({error})".splitlines()[0]) from error
    worst = float(torch.stack(differences).max())
    if not worst <= _TOLERANCE:
        raise _unfit(where, model, f"a pass over several guesses differs from single ones by {worst:.1%}")


def refuse_parallel_states(config: PretrainedConfig, where: str) -> None:
    """Refuses a model whose layers keep a state, which mask tokens would end up in; needs no weights.

    Raises:
        ModelError: It has recurrent layers.
    """
    reason = state_reason(config)
    if reason is not None:
        raise ModelError(
            f"{where}: {reason}, so mask tokens would stay in it; a parallel draft needs a model of attention alone"
        )


def _unfit(where: str, model: LanguageModel, reason: str) -> ModelError:
    return ModelError(
        f"{where} ({model.config.model_type}) can't become a parallel draft: {reason}; leave --parallel away, or take "
        "a draft of another family"
    )
