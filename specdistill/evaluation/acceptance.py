"""Teacher-forced acceptance: one pass of each model over the target's own answers tells what verification would do.

Given the text x that the target wrote, whether each of its tokens came from the draft is an independent event of
probability a_t = min(1, q(x_t) / p(x_t)) (rule `sampled`), 1[x_t = argmax q] (`argmax_draft`) or, at temperature 0,
1[argmax p = argmax q]: speculative decoding emits x_t ~ p, and does so through an accepted draft token with probability
min(p, q)(x_t). So one pass predicts the mean acceptance length of *every* draft length, path dependence included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from specdistill.data.batch import Sequence as TokenSequence
from specdistill.data.batch import collate
from specdistill.decoding.sampling import Sampling
from specdistill.models import LanguageModel
from specdistill_kernels import expected_acceptance

ALPHA_RULES = ("greedy", "sampled", "argmax_draft")


@dataclass(frozen=True)
class PromptAcceptance:
    """Scores of one answer, float64 [tokens] each."""

    alpha: dict[str, np.ndarray]
    """rule -> alpha of each position."""
    token_acceptance: dict[str, np.ndarray]
    """rule -> probability that the token really written there came from the draft."""
    fkl: np.ndarray
    """KL(target || draft) in nats."""

    @property
    def num_tokens(self) -> int:
        return len(self.fkl)


@torch.inference_mode()
def score(
    target: LanguageModel,
    draft: LanguageModel,
    sequences: Sequence[TokenSequence],
    sampling: Sampling,
    *,
    batch_size: int = 8,
    on_sequences=None,
) -> list[PromptAcceptance]:
    """Runs both models over the target's answers.

    Args:
        target, draft: The pair.
        sequences: Prompts with answers that the target wrote at `sampling`.
        sampling: Temperature and filters under which p and q are compared; at temperature 0 the rules that sample are
            compared at temperature 1, since both distributions would be single points.
        batch_size: Sequences per pass.
        on_sequences: Called with the number of sequences done, for progress.

    Returns:
        One record per sequence, in order.
    """
    compared = Sampling(temperature=1.0, top_k=sampling.top_k, top_p=sampling.top_p) if sampling.greedy else sampling
    results: list[PromptAcceptance] = []
    for start in range(0, len(sequences), batch_size):
        chunk = sequences[start : start + batch_size]
        batch = collate(chunk).to(target.device)
        rows = batch.predicting
        hidden = [model.hidden_states(batch.input_ids, batch.attention_mask)[rows] for model in (target, draft)]
        lengths = [len(sequence.answer_ids) for sequence in chunk]
        # One answer at a time: [answer, vocab] logits are small, those of a whole batch need not be.
        for target_rows, draft_rows, labels in zip(
            hidden[0].split(lengths), hidden[1].split(lengths), batch.labels.split(lengths), strict=True
        ):
            logits = [target.logits(target_rows), draft.logits(draft_rows)]
            statistics = expected_acceptance(*(compared.process(each) for each in logits), labels)
            assert statistics.token_acceptance is not None
            # The argmax is that of the raw logits at every temperature: filters keep the most likely id.
            results.append(
                PromptAcceptance(
                    alpha={rule: _array(getattr(statistics, rule)) for rule in ALPHA_RULES},
                    token_acceptance={
                        "greedy": _array(statistics.greedy),
                        "sampled": _array(statistics.token_acceptance),
                        "argmax_draft": _array((statistics.draft_argmax == labels).double()),
                    },
                    fkl=_array(statistics.fkl),
                )
            )
        if on_sequences is not None:
            on_sequences(len(chunk))
    return results


def expected_rounds(token_acceptance: np.ndarray, num_draft_tokens: int) -> float:
    """Expected number of verifications that an answer takes, the prompt's own pass (first token) not counted.

    Args:
        token_acceptance: [tokens] a_t of each answer token; the first is ignored (no draft is made for it).
        num_draft_tokens: gamma.

    A round that starts at t keeps k draft tokens with probability a_t ... a_(t+k-1) (1 - a_(t+k)) and emits k + 1.
    """
    chances = token_acceptance[1:]
    tokens = len(chances)
    starts = np.zeros(tokens + num_draft_tokens + 2)
    starts[0] = 1.0
    for position in range(tokens):
        alive = starts[position]
        if alive == 0:
            continue
        # The decoder proposes no more than what is left minus the token that verification adds.
        limit = min(num_draft_tokens, tokens - position - 1)
        for kept in range(limit):
            chance = chances[position + kept]
            starts[position + kept + 1] += alive * (1 - chance)
            alive *= chance
        starts[position + limit + 1] += alive
    return float(starts[:tokens].sum())


def predicted_tau(records: Sequence[PromptAcceptance], rule: str, num_draft_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and expected rounds of each answer: their sums' ratio is the predicted mean acceptance length."""
    tokens = np.array([record.num_tokens - 1 for record in records], dtype=float)
    rounds = np.array([expected_rounds(record.token_acceptance[rule], num_draft_tokens) for record in records])
    return tokens, rounds


def alpha_sums(records: Sequence[PromptAcceptance], rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Sum of alpha and number of tokens of each answer, for `statistics.ratio`."""
    sums = np.array([record.alpha[rule].sum() for record in records])
    return sums, np.array([record.num_tokens for record in records], dtype=float)


def _array(values: torch.Tensor) -> np.ndarray:
    return values.double().cpu().numpy()
