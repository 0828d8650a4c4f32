"""Held-out numbers of a parallel draft: acceptance by depth on the target's answers, and tokens per target call.

Verification keeps a guess of depth d with probability min(1, q_d(x) / p(x)) of the token x that the target wrote there
(rule `sampled`), 1[x = argmax q_d] (`argmax_draft`), or argmax agreement at temperature 0. q_d is the row of mask
d - 1: the guesses of a pass are independent. So one expanded pass over the target's answers gives what every round
would do, wherever it begins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from specdistill.data.batch import Example, collate
from specdistill.data.mask_tokens import every_mask
from specdistill.decoding import Sampling
from specdistill.decoding.sampling import process
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.target.place import Labeller
from specdistill.distill.training.measures import Sums
from specdistill.distill.training.parallel_rows import Guesses, guessing_rows
from specdistill.errors import DataError
from specdistill.evaluation.logit_blocks import logit_blocks
from specdistill.evaluation.rounds import expected_rounds
from specdistill.evaluation.statistics import Estimate
from specdistill.evaluation.summaries import ONE_BY_ONE, TOKENS_PER_CALL, depth_name
from specdistill.models import LanguageModel


@dataclasses.dataclass(frozen=True)
class TargetSays:
    """The target over one of its answers."""

    log_probs: Tensor
    """[tokens]: log-probability of each token that it wrote, under the sampling."""
    argmax: Tensor
    """int64 [tokens]: its likeliest token there."""


class ParallelHeldOut:
    """Tokens per target call at the K that is trained, and acceptance by depth.

    Args:
        answers: The target's answers to the held-out prompts.
        says: The target over each of them.
        sampling: How they were sampled.
        rule: Acceptance rule of the server: greedy, sampled or argmax_draft.
        num_tokens: Tokens that the draft guesses per pass (K).

    Raises:
        DataError: No answer has a token that a draft could guess.
    """

    _FLAG: ClassVar[str] = "--parallel"
    """Flag that sets the number of guesses."""
    _FIRST: ClassVar[int] = 0
    """First token of an answer that a draft of this kind guesses."""
    _GOES_ONE_BY_ONE: ClassVar[bool] = True
    """Whether it can be served one token per pass as well."""

    def __init__(
        self,
        answers: Sequence[Example],
        says: Sequence[TargetSays],
        sampling: Sampling,
        rule: str,
        num_tokens: int,
    ) -> None:
        self._says, self._sampling, self._num_tokens = says, sampling, num_tokens
        self._rule = "greedy" if sampling.greedy else rule
        # No answer of so few tokens is guessed at from further away.
        longest = max(len(one.answer_ids) for one in answers)
        if longest < 2:
            raise DataError(
                "every held-out answer of the target ends with its first token, which comes from its pass over the "
                "prompt: there is nothing to draft; look at OUTPUT/heldout, and take prompts with longer answers"
            )
        self._deepest = min(num_tokens, max(1, longest - self._FIRST))
        self._answers = [dataclasses.replace(one, masks=every_mask(len(one.answer_ids), num_tokens)) for one in answers]

    def announce(self, say: Callable[[str], None]) -> None:
        """Says which rule the numbers hold under, and which guesses no held-out answer is long enough for."""
        other = "; vLLM's default is --rule argmax_draft" if self._rule == "sampled" else ""
        say(f"tokens per call and acceptance by depth: {self._num_tokens} draft tokens, rule {self._rule}{other}")
        if self._deepest < self._num_tokens:
            say(
                f"warning: {self._FLAG} {self._num_tokens}, but no held-out answer has more than "
                f"{self._deepest + self._FIRST} tokens: guesses from {self._deepest + 1} on are not measured, and not "
                f"trained by answers of that length; lower {self._FLAG} to {self._deepest}, or train on longer answers"
            )

    @property
    def names(self) -> list[str]:
        """Names of the numbers, in order."""
        tokens = [TOKENS_PER_CALL, ONE_BY_ONE] if self._GOES_ONE_BY_ONE else [TOKENS_PER_CALL]
        return [*tokens, *(depth_name(depth) for depth in range(1, self._deepest + 1))]

    @torch.no_grad()
    def sums(self, draft: LanguageModel) -> dict[str, Sums]:
        """Each number of the draft as it is now, as a ratio per answer."""
        draft.model.eval()
        draft.weights_changed()
        tables = [self._acceptance(draft, *pair) for pair in zip(self._answers, self._says, strict=True)]
        # The first token is the target's, from its pass over the prompt.
        tokens = np.array([max(0, len(table) - 1) for table in tables], dtype=float)
        rounds = np.array([expected_rounds(table, self._num_tokens) for table in tables])
        sums: dict[str, Sums] = {TOKENS_PER_CALL: (tokens, rounds)}
        if self._GOES_ONE_BY_ONE:
            # Its first guess of a token is the same whatever round that falls in.
            rounds = np.array([expected_rounds(table[:, 0], self._num_tokens) for table in tables])
            sums[ONE_BY_ONE] = (tokens, rounds)
        for depth in range(1, self._deepest + 1):
            guessed = [table[self._FIRST : max(0, len(table) - depth + 1), depth - 1] for table in tables]
            sums[depth_name(depth)] = (
                np.array([rates.sum() for rates in guessed]),
                np.array([float(len(rates)) for rates in guessed]),
            )
        return sums

    def _acceptance(self, draft: LanguageModel, answer: Example, says: TargetSays) -> np.ndarray:
        """Acceptance of each guess, float64 [answer, K]: row t has those of a round whose first guess is token t."""
        (rows, guesses), labels = self._guessing(draft, answer), torch.tensor(answer.answer_ids, device=draft.device)
        rates = []
        for block in logit_blocks(rows, draft.vocab_size):
            logits = process(draft.logits(rows[block]).float(), self._sampling)
            token = guesses.predicted[block]
            rates.append(self._rates(logits, labels[token], says.log_probs[token.cpu()], says.argmax[token.cpu()]))
        table = np.zeros((len(answer.answer_ids), self._num_tokens))
        table[guesses.firsts.cpu().numpy(), guesses.depths.cpu().numpy() - 1] = torch.cat(rates).double().cpu().numpy()
        return table

    def _guessing(self, draft: LanguageModel, answer: Example) -> tuple[Tensor, Guesses]:
        """Hidden states for `draft.logits`, and what each guesses."""
        return guessing_rows(draft, collate([answer]).to(draft.device))

    def _rates(self, logits: Tensor, labels: Tensor, log_p: Tensor, argmax: Tensor) -> Tensor:
        if self._rule == "greedy":
            return (logits.argmax(-1) == argmax.to(logits.device)).float()
        if self._rule == "argmax_draft":
            return (logits.argmax(-1) == labels).float()
        log_q = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]
        return (log_q - log_p.to(log_q)).clamp(max=0).exp()


def unlearned_guesses(means: Mapping[str, float]) -> str | None:
    """Warns of a draft whose second guess is kept less than half as often as its first; None for any other.

    Args:
        means: Its held-out numbers.
    """
    if depth_name(2) not in means or means[depth_name(2)] >= means[depth_name(1)] / 2:
        return None
    return (
        f"guesses from the second on are hardly learned yet: acceptance {means[depth_name(2)]:.3f} at depth 2, "
        f"{means[depth_name(1)]:.3f} at depth 1; train longer (--steps), and serve it one token per pass until then, "
        f"{means[ONE_BY_ONE]:.2f} tokens per target call against {means[TOKENS_PER_CALL]:.2f}"
    )


def forgotten_skill(before: Mapping[str, float], after: Mapping[str, float], gain: Estimate) -> str | None:
    """Warns of a draft that gives fewer tokens per target call one by one than its start did; None for any other.

    Args:
        before, after: Held-out numbers of the start and of the kept draft.
        gain: Paired difference of the tokens per target call one by one.
    """
    if not gain.has_interval or gain.high >= 0:
        return None
    return (
        f"one token per pass it gives {after[ONE_BY_ONE]:.2f} tokens per target call, {before[ONE_BY_ONE]:.2f} before "
        "training: the first steps cost some of that, longer training brings it back (--steps)"
    )


def target_says(
    target: LanguageModel, answers: Sequence[Example], sampling: Sampling, states: TargetStates
) -> list[TargetSays]:
    """Asks a target in memory, one answer at a time."""
    found = []
    with torch.no_grad():
        for answer in answers:
            hidden, labels = states.hidden_states([answer])[0], torch.tensor(answer.answer_ids, device=target.device)
            log_probs, argmax = [], []
            for block in logit_blocks(hidden, target.vocab_size):
                logits = process(target.logits(hidden[block]).float(), sampling)
                log_probs.append(logits.log_softmax(-1).gather(1, labels[block][:, None])[:, 0].cpu())
                argmax.append(logits.argmax(-1).cpu())
            found.append(TargetSays(torch.cat(log_probs), torch.cat(argmax)))
    return found


def labels_say(labeller: Labeller, answers: Sequence[Example]) -> list[TargetSays]:
    """Reads the same from soft labels. A token that they leave out counts as likely as the least likely one.

    Labels that were drawn give the token's share of the draws, so that acceptance is right on average only.
    """
    found = []
    for answer, labels in zip(answers, labeller.labels_of(answers), strict=True):
        log_probs, argmax = [], []
        parts = (column.split(labels.counts.tolist()) for column in (labels.ids, labels.log_probs.float()))
        for token, ids, known in zip(answer.answer_ids, *parts, strict=True):
            own = known[ids == token]
            log_probs.append(own[0] if len(own) else known.min())
            argmax.append(ids[known.argmax()])
        found.append(TargetSays(torch.stack(log_probs), torch.stack(argmax)))
    return found
