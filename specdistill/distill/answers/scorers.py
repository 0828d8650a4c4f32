"""Scores of finished answers in token ids: by the target's likelihood, or by a scorer of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from specdistill.data.batch import Example
from specdistill.data.prompts import Prompt
from specdistill.data.scorers import Scorer
from specdistill.evaluation.acceptance import answer_hidden_states
from specdistill.models import LanguageModel
from specdistill_kernels import fused_divergence


@torch.no_grad()
def mean_log_likelihoods(model: LanguageModel, sequences: Sequence[Example], batch_size: int = 8) -> list[float]:
    """Mean log-probability per answer token under the model at temperature 1, in nats, one per sequence."""
    means: list[float] = []
    for start in range(0, len(sequences), batch_size):
        for sequence, hidden in zip(
            sequences[start : start + batch_size],
            answer_hidden_states(model, sequences[start : start + batch_size]),
            strict=True,
        ):
            labels = torch.tensor(sequence.answer_ids, device=hidden.device)
            loss = fused_divergence(
                *model.loss_inputs(hidden),
                None,
                None,
                torch.full((len(labels),), 1 / len(labels), device=hidden.device),
                kind="ce",
                labels=labels,
                vocab_size=model.vocab_size,
                draft_softcap=model.softcap,
            ).loss
            means.append(-float(loss))
    return means


def example_scorer(scorer: Scorer, prompts: Sequence[Prompt], model: LanguageModel) -> Callable[[Example], float]:
    """Makes a scorer of examples from one of texts.

    Args:
        scorer: Judges a prompt and an answer's text.
        prompts: All that the examples answer.
        model: Its tokenizer decodes the answers.
    """
    by_id = {prompt.id: prompt for prompt in prompts}

    def score(example: Example) -> float:
        return scorer(by_id[example.prompt_id], model.decode(example.answer_ids))

    return score


def best_of_n(
    sequences: Sequence[Example], prompts: Sequence[Prompt], target: LanguageModel, scorer: Scorer | None
) -> list[Example]:
    """The best answer to each prompt, in the order of the prompts; ties go to the one that the target finds likelier.

    Args:
        sequences: Several answers per prompt.
        prompts: All that the sequences answer.
        target: Its likelihood is the score, or decides ties.
        scorer: None scores by the likelihood alone.
    """
    known = {prompt.id: prompt for prompt in prompts}
    best: dict[str, tuple[float, float, Example]] = {}
    likelihoods = mean_log_likelihoods(target, [row.as_target_reads for row in sequences])
    for sequence, likelihood in zip(sequences, likelihoods, strict=True):
        score = 0.0
        if scorer is not None:
            score = scorer(known[sequence.prompt_id], target.decode(sequence.answer_ids))
        held = best.get(sequence.prompt_id)
        if held is None or (score, likelihood) > held[:2]:
            best[sequence.prompt_id] = (score, likelihood, sequence)
    return [best[prompt.id][2] for prompt in prompts if prompt.id in best]
