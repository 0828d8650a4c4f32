"""One pass over texts of different lengths with little padding: several of them lie behind each other in a row.

Every token stands at the position that it has in its own text, and sees its own text alone: transformers hides other
texts where positions begin again in a row. So a text has the hidden states of a pass of its own, up to rounding.
`why_unpacked` proves it on a few tokens.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from specdistill.data.batch import Batch, Example, collate
from specdistill.decoding.proof import first_wrong, short_windows, state_reason
from specdistill.errors import first_line, is_out_of_memory
from specdistill.models import LanguageModel
from specdistill.models.language_model import LONG_TEXT
from specdistill.models.output_head import sample_ids

_LARGEST_ROW = 8
"""Longest row to consider, in texts of the largest length."""
_SAMPLE = (7, 3, 5, 1)
"""Tokens of the texts of a proof: longer and shorter than a shortened window, and one that ends where it begins."""
_SAMPLE_ROWS = [[1, 0], [2, 3]]


def predicting_states(model: LanguageModel, batch: Batch) -> Tensor:
    """Hidden states that predict the answers' tokens, [tokens, hidden], in the order of `batch.labels`.

    Args:
        model: Packs the texts of a pass where its `packs` says so and that saves work.
        batch: Padded texts.
    """
    lengths = batch.attention_mask.sum(1).tolist() if model.packs else []
    rows = plan_rows(lengths, model.head_weight.shape[1])
    if len(rows) == len(lengths):
        return model.hidden_states(batch.input_ids, batch.attention_mask)[batch.predicting]
    hidden, places = packed_hidden_states(model, batch, lengths, rows)
    return hidden[places[batch.predicting]]


def packed_hidden_states(
    model: LanguageModel, batch: Batch, lengths: Sequence[int], rows: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Hidden states after the final norm of texts that share rows.

    Args:
        model: A model that `why_unpacked` has nothing against.
        batch: Padded texts.
        lengths: Tokens of each text.
        rows: Texts of each row, as by `plan_rows`.

    Returns:
        [tokens of all rows, hidden], and for each token of the padded batch the number of its state, int64
        [batch, length], which means nothing on padding.
    """
    width = max(sum(lengths[text] for text in row) for row in rows)
    starts = torch.zeros(len(lengths), dtype=torch.int64)
    for number, row in enumerate(rows):
        start = number * width
        for text in row:
            starts[text] = start
            start += lengths[text]
    ids, real = batch.input_ids, batch.attention_mask.bool()
    within = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    places = starts.to(ids.device)[:, None] + within
    # Each token of padding is a text of its own at position 0: it sees itself, and nothing sees it.
    packed, positions = (ids.new_zeros(len(rows) * width) for _ in range(2))
    packed[places[real]], positions[places[real]] = ids[real], within[real]
    hidden = model.base_model(
        input_ids=packed.view(-1, width), position_ids=positions.view(-1, width), use_cache=False
    ).last_hidden_state
    return hidden.flatten(0, 1), places


def plan_rows(lengths: Sequence[int], hidden: int) -> list[list[int]]:
    """Chooses how many rows texts share, and which text lies where.

    A token costs its own layers about 24 h^2 products and its attention 4 h for each token of its row, seen or not. So
    few long rows waste no padding and much attention.

    Args:
        lengths: Tokens of each text.
        hidden: Size h of the model's hidden states.

    Returns:
        Numbers of each row's texts; a row for each text, in order, where sharing saves nothing or texts are long.
    """
    alone = [[text] for text in range(len(lengths))]
    if len(lengths) < 2 or max(lengths) > LONG_TEXT:
        return alone
    longest, total = max(lengths), sum(lengths)
    counts = {math.ceil(total / (longest * size)) + more for size in range(1, _LARGEST_ROW + 1) for more in (0, 1)}
    plans = [alone, *(_balanced(lengths, count) for count in sorted(counts) if count < len(lengths))]
    costs = [_cost(lengths, plan, hidden) for plan in plans]
    return plans[costs.index(min(costs))]


def _balanced(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Texts on `count` rows of nearly the same length: the longest first, each on the shortest row so far."""
    rows: list[list[int]] = [[] for _ in range(count)]
    filled = [(0, row) for row in range(count)]
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        length, row = filled[0]
        rows[row].append(text)
        heapq.heapreplace(filled, (length + lengths[text], row))
    return rows


def _cost(lengths: Sequence[int], rows: Sequence[Sequence[int]], hidden: int) -> float:
    width = max(sum(lengths[text] for text in row) for row in rows)
    return math.inf if width > LONG_TEXT else len(rows) * width * (6 * hidden + width)


def why_unpacked(model: LanguageModel) -> str | None:
    """Why texts can't share rows in a model's passes; None where a few tokens prove that they can."""
    reason = state_reason(model.config)
    if reason is not None:
        return reason
    ids = sample_ids(model.vocab_size, sum(_SAMPLE))
    texts = [[ids.pop() for _ in range(count)] for count in _SAMPLE]
    batch = collate([Example("sample", tuple(text), (), ()) for text in texts]).to(model.device)
    try:
        with model.generating(), short_windows(model):
            hidden, places = packed_hidden_states(model, batch, _SAMPLE, _SAMPLE_ROWS)
            wrong = [first_wrong(model, text, hidden[at[: len(text)]]) for text, at in zip(texts, places, strict=True)]
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # Families refuse positions, or a pass without a mask, in as many ways as there are.
        return f"it takes no positions of several texts ({type(error).__name__}: {first_line(error)})"
    found = next((one for one in wrong if one is not None), None)
    return None if found is None else f"beside others in a row a text differs by {found.share:.2g} of the largest state"
