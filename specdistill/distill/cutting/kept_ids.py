"""Ids of a trimmed output head: those that the target uses most in its own text."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specdistill.data.batch import Example
from specdistill.evaluation.acceptance import HiddenCache, answer_hidden_states
from specdistill.evaluation.logit_blocks import logit_blocks
from specdistill.models import LanguageModel
from specdistill.progress import Progress

_LEAST_COVERED = 0.95
"""Share of the target's probability below which a trimmed head is warned of."""
_FOLDS = 8
"""Parts that the answers are split in: the ids of all but one are counted on that one."""
_TOKENS_TO_TELL, _PROMPTS_TO_TELL = 500, 8
"""Held-back tokens, and prompts, below which the counted share can be several per cent off."""


def most_used_ids(
    target: LanguageModel, answers: Sequence[Example], count: int, progress: Progress
) -> tuple[torch.Tensor, float | None]:
    """Chooses the ids that the target uses most in its own answers, and counts what such a choice holds elsewhere.

    Every position votes with the target's whole distribution rather than with the one token that was sampled: the same
    expectation, but it ranks ids that a small sample never shows. Stop tokens are always kept.

    The share is counted on answers that did not choose: on the text that chose them, few answers would always hold
    nearly all. Ids are chosen on all but one part of the prompts and counted on that part, for each part in turn.

    Args:
        target: Votes.
        answers: Its answers. Those of one prompt stay in one part.
        count: Ids to keep.
        progress: Where the bar goes.

    Returns:
        Sorted ids [count], chosen on all answers, and the share of the target's probability that such ids hold on text
        that did not choose them; None where all answers are to one prompt.
    """
    order = {prompt: index for index, prompt in enumerate(dict.fromkeys(one.prompt_ids for one in answers))}
    folds = min(_FOLDS, len(order))
    votes = torch.zeros(folds, target.vocab_size, dtype=torch.float64, device=target.device)
    cache: HiddenCache = {}
    with progress.task("counting ids for the trimmed head", len(answers), "answers") as task:
        for start in range(0, len(answers), 8):
            batch = answers[start : start + 8]
            for example, hidden in zip(batch, answer_hidden_states(target, batch, cache), strict=True):
                part = votes[order[example.prompt_ids] % folds]
                with torch.no_grad():
                    for block in logit_blocks(hidden, target.vocab_size):
                        part += target.logits(hidden[block]).float().softmax(-1).sum(0)
                task.advance()
            cache.clear()
    return _top(votes, target, count), _held_back_share(votes, target, count)


def _top(votes: torch.Tensor, target: LanguageModel, count: int) -> torch.Tensor:
    """Sorted ids [count] with the most votes [parts, vocabulary], stop tokens first."""
    ranked = votes.sum(0)
    ranked[list(target.eos_token_ids)] = torch.inf
    return ranked.topk(count).indices.sort().values


def _held_back_share(votes: torch.Tensor, target: LanguageModel, count: int) -> float | None:
    """Share of the votes [parts, vocabulary] that the ids of the other parts hold; None with one part."""
    if count >= votes.shape[1]:
        return 1.0
    if len(votes) < 2:
        return None
    parts = range(len(votes))
    held = sum(votes[part, _top(votes[[one for one in parts if one != part]], target, count)].sum() for part in parts)
    return float(held / votes.sum())


def head_line(
    ids: int, covered: float | None, answers: Sequence[Example], vocab_size: int, zero: str = "0 keeps all ids"
) -> str:
    """Says what a trimmed head holds, and warns where it holds too little or where too few tokens were counted.

    Args:
        ids: Ids of the head.
        covered: Share of the target's probability that they hold, from `most_used_ids`.
        answers: Answers that were counted.
        vocab_size: The target's ids.
        zero: Meaning of --vocab-keep 0 for this kind of draft.
    """
    if ids == vocab_size:
        return f"trimmed head: all {ids} ids are kept"
    tokens, prompts = sum(len(one.answer_ids) for one in answers), len({one.prompt_ids for one in answers})
    more = f"--calibration-prompts ({prompts} were used)"
    if covered is None:
        return (
            f"warning: trimmed head: {ids} ids were chosen on the {tokens:,} tokens of one prompt's answers, so the "
            f"share of the target's probability that they hold elsewhere is unknown; raise {more}"
        )
    line = (
        f"trimmed head: {ids} ids hold {covered:.2%} of the target's probability on answers held back from the "
        f"choice ({tokens:,} tokens)"
    )
    if covered < _LEAST_COVERED:
        return (
            f"warning: {line}; the target never accepts a token outside them, so alpha stays below that share. Raise "
            f"--vocab-keep ({zero}), or {more}"
        )
    if tokens < _TOKENS_TO_TELL or prompts < _PROMPTS_TO_TELL:
        return f"warning: {line}; these are too few to tell: raise {more} or --calibration-tokens"
    return line
