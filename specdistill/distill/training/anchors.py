"""Which tokens of a text a parallel draft guesses from: every one, or those where its own rounds would begin."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from specdistill.data.batch import Example, collate
from specdistill.data.mask_tokens import drop_masks, every_mask
from specdistill.decoding.expanded_pass import expanded_hidden_states
from specdistill.distill.sequences.measurements import Measurements
from specdistill.distill.sequences.sources import Source
from specdistill.distill.training.parallel_settings import ParallelSettings
from specdistill.evaluation.logit_blocks import logit_blocks
from specdistill.models import LanguageModel


class Anchored:
    """A source whose examples say how many masks stand behind each of their tokens.

    The choice depends on the step and the example alone, so that a resumed run, or one on more processes, trains on the
    same masks.

    Args:
        source: Gives the examples.
        draft: A parallel draft; it is asked where its rounds begin.
        settings: Anchors, and how many masks are kept.
        seed: Random seed of the run.
    """

    def __init__(self, source: Source, draft: LanguageModel, settings: ParallelSettings, seed: int) -> None:
        self._source, self._draft, self._settings, self._seed = source, draft, settings, seed

    def next_batch(self, step: int) -> list[Example]:
        return [self._with_masks(example, step) for example in self._source.next_batch(step)]

    def measurements(self, *, reset: bool = False) -> Measurements:
        return self._source.measurements(reset=reset)

    def state_dict(self) -> dict[str, Any]:
        return self._source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._source.load_state_dict(state)

    def _with_masks(self, example: Example, step: int) -> Example:
        settings, length = self._settings, len(example.answer_ids)
        starts = None if settings.anchors == "all" else round_starts(self._draft, example, settings.parallel)
        seed = f"{self._seed} {step} {example.prompt_id} {example.answer_ids}"
        masks = every_mask(length, settings.parallel, starts)
        kept = drop_masks(masks, settings.parallel_keep, settings.parallel_keep_least, seed)
        return dataclasses.replace(example, masks=kept)


def round_starts(draft: LanguageModel, example: Example, num_tokens: int) -> list[int]:
    """First tokens of the draft's rounds on a text, as numbers among the answer's tokens.

    A round keeps the draft's likeliest tokens while they are the text's, and the verification adds one token. The first
    token of an answer is the target's, from its pass over the prompt.

    Args:
        draft: A parallel draft.
        example: The text.
        num_tokens: Tokens that the draft guesses per pass.
    """
    length = len(example.answer_ids)
    right = _right_guesses(draft, example, num_tokens)
    starts, start = [], 1
    while start < length:
        starts.append(start)
        kept = next((ahead for ahead in range(num_tokens) if not right.get((start, ahead + 1), False)), num_tokens)
        start += kept + 1
    return starts


def _right_guesses(draft: LanguageModel, example: Example, num_tokens: int) -> dict[tuple[int, int], bool]:
    """(first token of the round, tokens looked ahead) -> whether the draft's likeliest token is the text's."""
    length, prompt = len(example.answer_ids), len(example.prompt_ids)
    if length < 2:
        return {}
    assert draft.parallel is not None, "the draft has a mask token"
    batch = collate([dataclasses.replace(example, masks=every_mask(length, num_tokens))]).to(draft.device)
    assert batch.masks is not None
    with draft.generating():
        real, behind = expanded_hidden_states(draft, batch, draft.parallel.mask_id)
        rows = torch.cat((real[batch.predicting], behind[batch.masks.real]))
        blocks = logit_blocks(rows, draft.vocab_size)
        guessed = torch.cat([draft.to_token_ids(draft.own_logits(rows[block]).argmax(-1)) for block in blocks])
    firsts = torch.cat((torch.arange(length), batch.masks.anchors[batch.masks.real].cpu() - (prompt - 1)))
    depths = torch.cat((torch.ones(length, dtype=torch.int64), batch.masks.predicted_depths.cpu()))
    labels = batch.labels.cpu()
    right = guessed.cpu() == labels[firsts + depths - 1]
    return dict(zip(zip(firsts.tolist(), depths.tolist(), strict=True), right.tolist(), strict=True))
