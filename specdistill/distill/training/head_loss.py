"""The loss of a head: every step of every round is compared with what the target says of the token that it guesses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from specdistill.data.batch import Batch, Provenance
from specdistill.distill.training.head_rows import head_rows
from specdistill.distill.training.loss import DistillationLoss, LossOutput, StepTotals
from specdistill.distill.training.loss_settings import Objective
from specdistill.models import LanguageModel, ModelPair
from specdistill.models.head_draft import HeadModel
from specdistill_kernels import SoftLabels, fused_divergence
from specdistill_kernels.fused_divergence import trimmed_log_probs


class HeadLoss(DistillationLoss):
    """A head with its loss, over its own ids and all others as one outcome.

    Args:
        draft: Trained; its network is this module's only submodule.
        target: Its head multiplies the target's hidden states. Ignored for cross entropy.
        objective: With `head` set.
    """

    def __init__(self, draft: HeadModel, target: LanguageModel, objective: Objective) -> None:
        super().__init__(draft, target, objective)
        self._head = draft.head
        if objective.head is not None:
            self._head.mark_trained_for(objective.head.steps)
        self._columns = torch.full((target.vocab_size,), -1, device=draft.device)
        self._columns[draft.head.draft_ids] = torch.arange(draft.head.draft_vocab_size, device=draft.device)

    def forward(
        self,
        batch: Batch,
        target_hidden: Tensor | None,
        totals: StepTotals,
        advantages: Tensor | None = None,
        soft_labels: SoftLabels | None = None,
        selection: Tensor | None = None,
    ) -> LossOutput:
        """As for any draft; `totals.by_depth` counts the guesses of each step, and alpha is that of the first one."""
        settings, objective = self._objective.head, self._objective
        assert settings is not None and advantages is None and soft_labels is None and selection is None
        hidden, guesses = head_rows(self._head, batch, settings.steps)
        hidden = self._head.norm(hidden)
        own = batch.provenance[batch.response_mask] == Provenance.DRAFT
        labels = batch.labels[guesses.predicted]
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.to(self._draft.head_weight.dtype)
            weights = torch.tensor(settings.step_weights(totals.by_depth), device=hidden.device)[guesses.depths - 1]
            table = None if target_hidden is None else self._target_table(target_hidden)
            rows = None if table is None else guesses.predicted
            output = self._divergence(self.kind, hidden, table, weights * self._share, labels, target_rows=rows)
            loss = output.loss
            if objective.ce_weight and self.kind != "ce":
                labelled = objective.ce_weight * weights.masked_fill(own[guesses.predicted], 0)
                loss = loss + self._divergence("ce", hidden, None, labelled, labels).loss
        first = output.alpha[guesses.depths == 1].sum()
        # The step's mean divides by all its tokens, and answers' first ones are guessed by nobody.
        return LossOutput(loss, first * (totals.tokens / max(1, totals.by_depth[0])))

    def _target_table(self, hidden: Tensor) -> Tensor:
        """The target's log-probabilities of the head's ids and of the rest: once for all steps that guess a token."""
        rows, weight = self._target.loss_inputs(hidden)
        return trimmed_log_probs(
            rows,
            weight,
            self._head.draft_ids,
            temperature=self.temperature,
            vocab_size=self._vocab_size,
            softcap=self._target.softcap,
        )

    def _divergence(
        self,
        kind: str,
        hidden: Tensor,
        target_hidden: Tensor | None,
        weights: Tensor,
        labels: Tensor,
        temperature: float | None = None,
        draft: LanguageModel | None = None,
        soft_labels: SoftLabels | None = None,
        target_rows: Tensor | None = None,
    ) -> Any:
        """As for any draft, but `target_hidden` are rows of `_target_table`."""
        columns = self._columns[labels]
        if kind == "ce":
            # Nothing can teach it a token that it has no row for.
            weights = weights.masked_fill(columns < 0, 0)
        return fused_divergence(
            hidden,
            self._draft.head_weight,
            None,
            None,
            weights,
            kind=kind,
            beta=self.beta,
            eta=self._objective.eta,
            temperature=temperature or self.temperature,
            labels=columns.clamp(min=0),
            trimmed_target=target_hidden,
            target_rows=target_rows,
        )


def build_loss(pair: ModelPair, objective: Objective, reference: LanguageModel | None = None) -> DistillationLoss:
    """The loss of a pair's draft.

    Args:
        pair: Target and draft.
        objective: Loss to minimise.
        reference: AdaSPEC's reference draft, or None.
    """
    if isinstance(pair.draft, HeadModel):
        return HeadLoss(pair.draft, pair.target, objective)
    return DistillationLoss(pair.draft, pair.target, objective, reference)
