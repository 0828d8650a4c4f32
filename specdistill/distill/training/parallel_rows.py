"""The rows of a parallel draft's pass that the loss reads: the text's own, then those of the masks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from specdistill.data.batch import Batch
from specdistill.data.mask_tokens import MaskTokens
from specdistill.decoding.expanded_pass import expanded_hidden_states
from specdistill.models import LanguageModel
from specdistill_kernels import SoftLabels


class Guesses(NamedTuple):
    """Every guess of a batch, [guesses] each: those one token ahead first, in the order of `batch.labels`."""

    predicted: Tensor
    """int64: answer token that is guessed, as a number among `batch.labels`."""
    depths: Tensor
    """int64: how many tokens the guess looks ahead of its anchor, from 1."""

    @classmethod
    def of_batch(cls, batch: Batch, masks: MaskTokens) -> Guesses:
        """The guesses in the order of the rows: the text's, then those of the masks in the order of `masks.real`."""
        own = torch.arange(batch.num_response_tokens, device=masks.anchors.device)
        return cls(torch.cat((own, masks.predicted)), torch.cat((torch.ones_like(own), masks.predicted_depths)))

    @property
    def firsts(self) -> Tensor:
        """int64: first answer token of the round in which each guess is made."""
        return self.predicted - self.depths + 1

    def reached(self, probabilities: Tensor) -> Tensor:
        """Probability that verification comes as far as each guess, if the target writes the text's own tokens.

        Args:
            probabilities: [tokens], of each answer token after those before it.

        Returns:
            [guesses]: the product over the tokens between the anchor and the guess; 1 for those one token ahead.
        """
        logs = probabilities.double().clamp(min=1e-30).log()
        before = torch.cat((logs.new_zeros(1), logs.cumsum(0)))
        return (before[self.predicted] - before[self.firsts]).exp().to(probabilities.dtype)


def guessing_rows(draft: LanguageModel, batch: Batch) -> tuple[Tensor, Guesses]:
    """Hidden states from which a parallel draft guesses, [guesses, hidden], and what each guesses.

    Args:
        draft: With a mask token.
        batch: With masks.
    """
    assert draft.parallel is not None and batch.masks is not None, "the draft and the batch have masks"
    real, behind = expanded_hidden_states(draft, batch, draft.parallel.mask_id)
    return torch.cat((real[batch.predicting], behind[batch.masks.real])), Guesses.of_batch(batch, batch.masks)


def labelled_probabilities(labels: Tensor, soft_labels: SoftLabels) -> Tensor:
    """Probability of each answer token by its soft labels; what they leave over for a token that they leave out.

    Args:
        labels: int64 [tokens].
        soft_labels: [tokens, K].
    """
    known = soft_labels.log_probs.float().exp()
    own = (soft_labels.token_ids == labels[:, None]) & (known > 0)
    left = (1 - known.sum(1)).clamp(min=0)
    return torch.where(own.any(1), (known * own).sum(1), left)
