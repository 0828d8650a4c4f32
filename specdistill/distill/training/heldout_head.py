"""Held-out numbers of a head: tokens per target call, acceptance by step, and alpha of the first step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specdistill.data.batch import Example, collate
from specdistill.decoding import Sampling
from specdistill.decoding.sampling import process
from specdistill.distill.target.head_states import HeadStates
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.training.head_rows import head_rows
from specdistill.distill.training.heldout import HeldOut
from specdistill.distill.training.heldout_parallel import ParallelHeldOut, TargetSays, target_says
from specdistill.distill.training.loss_settings import Objective
from specdistill.distill.training.parallel_rows import Guesses
from specdistill.evaluation.acceptance import ALPHA_RULES, PromptAcceptance
from specdistill.evaluation.logit_blocks import logit_blocks
from specdistill.models import LanguageModel
from specdistill.models.head_draft import HeadModel
from specdistill_kernels import expected_acceptance


class HeadHeldOut(ParallelHeldOut):
    """As for a parallel draft: the guess of a token depends on where the round began.

    Args:
        states: The target's states of the answers.
        answers: The target's answers to the held-out prompts.
        says: The target over each of them.
        sampling: How they were sampled.
        rule: Acceptance rule of the server.
        steps: Draft tokens of a round.
    """

    _FLAG = "--unroll"
    # An answer's first token is the target's, from its pass over the prompt.
    _FIRST = 1
    _GOES_ONE_BY_ONE = False

    def __init__(
        self,
        states: TargetStates,
        answers: Sequence[Example],
        says: Sequence[TargetSays],
        sampling: Sampling,
        rule: str,
        steps: int,
    ) -> None:
        super().__init__(answers, says, sampling, rule, steps)
        self._states, self._answers = states, list(answers)

    def _guessing(self, draft: LanguageModel, answer: Example) -> tuple[Tensor, Guesses]:
        return rows_of(draft, self._states, answer, self._num_tokens)


class HeadAlpha(HeldOut):
    """Alpha under every rule of a round's first token; an answer's own first token is the target's.

    Args:
        target: The target.
        states: Its states of the answers.
        answers: Its answers to the held-out prompts.
        sampling: How they were sampled.
        rule: Acceptance rule that is watched.
    """

    def __init__(
        self, target: LanguageModel, states: TargetStates, answers: Sequence[Example], sampling: Sampling, rule: str
    ) -> None:
        super().__init__(target, answers, sampling, rule)
        self._states = states

    @torch.no_grad()
    def score(self, draft: LanguageModel) -> list[PromptAcceptance]:
        """Records of the draft as it is now."""
        draft.model.eval()
        draft.weights_changed()
        return [self._record(draft, answer) for answer in self._answers]

    def _record(self, draft: LanguageModel, answer: Example) -> PromptAcceptance:
        rows, _ = rows_of(draft, self._states, answer, 1)
        hidden = self._states.hidden_states([answer])[0][1:]
        alpha: dict[str, list[Tensor]] = {rule: [] for rule in ALPHA_RULES}
        divergence = []
        for block in logit_blocks(rows, draft.vocab_size):
            logits = (
                process(model.logits(part[block]).float(), self._sampling)
                for model, part in ((self._target, hidden), (draft, rows))
            )
            statistics = expected_acceptance(*logits)
            for rule, parts in alpha.items():
                # At temperature 0 every rule is argmax agreement.
                parts.append(statistics.greedy if self._sampling.greedy else getattr(statistics, rule))
            divergence.append(statistics.fkl)
        numbers = {rule: torch.cat(parts).double().cpu().numpy() for rule, parts in alpha.items()}
        return PromptAcceptance(numbers, {}, {}, torch.cat(divergence).double().cpu().numpy())


def rows_of(draft: LanguageModel, states: TargetStates, answer: Example, steps: int) -> tuple[Tensor, Guesses]:
    """Hidden states of a head's rounds on one answer, for `draft.logits`, and what each guesses."""
    assert isinstance(draft, HeadModel)
    batch = states.with_features(collate([answer]).to(draft.device), [answer])
    return head_rows(draft.head, batch, steps)


def head_scorers(
    target: LanguageModel,
    draft: HeadModel,
    answers: Sequence[Example],
    sampling: Sampling,
    rule: str,
    objective: Objective,
    stored: TargetStates | None = None,
) -> tuple[HeadAlpha, HeadHeldOut]:
    """Both scorers of a head, which share the target's states of the answers.

    Args:
        target, draft: The pair.
        answers: The target's answers to the held-out prompts.
        sampling: How they were sampled.
        rule: Acceptance rule that is watched.
        objective: With `head` set.
        stored: The states, where they are on disk.
    """
    assert objective.head is not None
    states = stored or HeadStates(target, draft.head.aux_layers, answers)
    says = target_says(target, answers, sampling, states)
    return (
        HeadAlpha(target, states, answers, sampling, rule),
        HeadHeldOut(states, answers, says, sampling, rule, objective.head.steps),
    )
