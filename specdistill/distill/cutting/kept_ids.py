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


def most_used_ids(
    target: LanguageModel, answers: Sequence[Example], count: int, progress: Progress
) -> tuple[torch.Tensor, float]:
    """The ids the target uses most in its own answers, and the share of its probability that they hold there.

    Every position votes with the target's whole distribution rather than with the one token that was sampled: the same
    expectation, but it ranks ids that a small sample never shows. Stop tokens are always kept.
    """
    votes = torch.zeros(target.vocab_size, dtype=torch.float64, device=target.device)
    cache: HiddenCache = {}
    with progress.task("counting ids for the trimmed head", len(answers), "answers") as task:
        for start in range(0, len(answers), 8):
            for hidden in answer_hidden_states(target, answers[start : start + 8], cache):
                with torch.no_grad():
                    for block in logit_blocks(hidden, target.vocab_size):
                        votes += target.logits(hidden[block]).float().softmax(-1).sum(0)
                task.advance()
            cache.clear()
    share = votes / votes.sum()
    ranked = share.clone()
    ranked[list(target.eos_token_ids)] = torch.inf
    kept = ranked.topk(count).indices.sort().values
    return kept, float(share[kept].sum())


def head_line(ids: int, covered: float, prompts: int, zero: str = "0 keeps all ids") -> str:
    """Says what a trimmed head holds, and warns where it holds too little.

    Args:
        ids: Ids of the head.
        covered: Share of the target's probability that they hold.
        prompts: Prompts whose answers were counted.
        zero: Meaning of --vocab-keep 0 for this kind of draft.
    """
    line = f"trimmed head: {ids} ids hold {covered:.2%} of the target's probability"
    if covered >= _LEAST_COVERED:
        return line
    return (
        f"warning: {line}; the target never accepts a token outside them, so alpha stays below that share. Raise "
        f"--vocab-keep ({zero}), or --calibration-prompts ({prompts} were used)"
    )
