"""From a batch to its loss, in one forward pass of the draft.

Everything that needs the draft's parameters happens inside `DistillationLoss.forward`: a wrapper (DDP, FSDP) only knows
of what passes through it, and a loss that reads the head around it would miss gradients or find a shard.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from specdistill.data.batch import Batch, Provenance
from specdistill.decoding.packed_pass import predicting_states
from specdistill.distill.training.loss_settings import Objective
from specdistill.distill.training.parallel_rows import guessing_rows, labelled_probabilities
from specdistill.distill.training.parallel_settings import ParallelLoss
from specdistill.models import LanguageModel
from specdistill_kernels import SoftLabels, fused_divergence


class StepTotals(NamedTuple):
    """Counts over the whole optimiser step: all its micro-batches on all ranks, after rollouts."""

    tokens: int
    sequences: int
    by_depth: tuple[int, ...] = ()
    """Guesses of a parallel draft by how far they look ahead, from 1; empty for an ordinary one."""


class LossOutput(NamedTuple):
    """A micro-batch's contribution; the sum over a step's micro-batches is the step's loss."""

    loss: Tensor
    alpha_sum: Tensor
    """Sum of alpha over the micro-batch's tokens; NaN for cross entropy, which looks at no target."""


class DistillationLoss(nn.Module):
    """The draft with its loss.

    Args:
        draft: Trained; its network is this module's only submodule.
        target: Its head multiplies the target's hidden states. Ignored for cross entropy.
        objective: Loss to minimise.
        reference: AdaSPEC's reference draft, or None.
    """

    def __init__(
        self, draft: LanguageModel, target: LanguageModel, objective: Objective, reference: LanguageModel | None = None
    ) -> None:
        super().__init__()
        self.network = draft.model
        # LanguageModels are no modules, so nothing of the target counts as a parameter here.
        self._draft, self._target, self._reference, self._objective = draft, target, reference, objective
        self.kind, self.beta, self.scale = divergence_of(objective.kind, objective.beta)
        self.temperature = objective.temperature
        self._vocab_size, mask = draft.vocab_size, draft.parallel
        if objective.parallel is not None and mask is not None and mask.mask_id < target.head_weight.shape[0]:
            # A mask token beyond the tokenizer's ids must not be guessed either, by engines that sample over padding.
            self._vocab_size = max(self._vocab_size, mask.mask_id + 1)
        # Found here, where the weights are whole: a pass later may meet shards.
        for model in (draft, target, reference):
            if model is not None:
                model.with_logit_scale()

    def forward(
        self,
        batch: Batch,
        target_hidden: Tensor | None,
        totals: StepTotals,
        advantages: Tensor | None = None,
        soft_labels: SoftLabels | None = None,
        selection: Tensor | None = None,
    ) -> LossOutput:
        """The micro-batch's part of the step's loss.

        Args:
            batch: Sequences.
            target_hidden: [tokens, target_hidden_size] in the order of `batch.labels`; None for cross entropy.
            totals: Counts over the step.
            advantages: [batch], of answers that the draft wrote; None without a reward.
            soft_labels: Labels of the tokens, instead of the target's hidden states.
            selection: [tokens] factors of AdaSPEC's selection, as by `select_tokens`; None trains on all tokens.
        """
        if batch.masks is not None and self._objective.parallel is not None:
            return self._parallel(batch, self._objective.parallel, target_hidden, totals, soft_labels)
        hidden = predicting_states(self._draft, batch)
        # The loss stays in float32 whatever the network runs in: rounded logits bias the draft's entropy.
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.to(self._draft.head_weight.dtype)
            mean = self._token_weights(batch, totals)
            share = self._share
            weights = mean * share if selection is None else mean * selection * share
            output = self._divergence(self.kind, hidden, target_hidden, weights, batch.labels, soft_labels=soft_labels)
            loss, alpha = output.loss, output.alpha
            if selection is not None or not share or self._objective.distill_weight == 0:
                # Tokens without weight were passed over, but the draft is judged on all of them.
                alpha = self._alpha(hidden.detach(), target_hidden, batch.labels, soft_labels)
            if self._objective.ce_weight and self.kind != "ce":
                # On its own tokens a model's cross entropy only makes it surer of what it says already.
                own = batch.provenance[batch.response_mask] == Provenance.DRAFT
                labelled = self._objective.ce_weight * mean.masked_fill(own, 0)
                loss = loss + self._divergence("ce", hidden, None, labelled, batch.labels).loss
            if advantages is not None:
                loss = loss + self._policy_loss(batch, hidden, advantages, totals.sequences)
        return LossOutput(loss, alpha.sum())

    def _parallel(
        self,
        batch: Batch,
        settings: ParallelLoss,
        target_hidden: Tensor | None,
        totals: StepTotals,
        soft_labels: SoftLabels | None,
    ) -> LossOutput:
        """The same for a parallel draft: the text's own rows are trained as ever, and each mask's row beside them."""
        hidden, guesses = guessing_rows(self._draft, batch)
        tokens, own = batch.num_response_tokens, batch.provenance[batch.response_mask] == Provenance.DRAFT
        # A row is compared with what the target says of the token that it guesses.
        predicted, labels = guesses.predicted, batch.labels[guesses.predicted]
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.to(self._draft.head_weight.dtype)
            weights = torch.tensor(settings.depth_weights(totals.by_depth), device=hidden.device)[guesses.depths - 1]
            if settings.by_confidence:
                weights *= guesses.reached(self._text_probabilities(target_hidden, batch.labels, soft_labels))
            share = self._share
            output = self._divergence(
                self.kind,
                hidden,
                target_hidden,
                weights * share,
                labels,
                soft_labels=soft_labels,
                target_rows=predicted,
            )
            loss, alpha = output.loss, output.alpha[:tokens]
            if not share:
                alpha = self._alpha(hidden[:tokens].detach(), target_hidden, batch.labels, soft_labels)
            if self._objective.ce_weight and self.kind != "ce":
                labelled = self._objective.ce_weight * weights.masked_fill(own[predicted], 0)
                loss = loss + self._divergence("ce", hidden, None, labelled, labels).loss
        return LossOutput(loss, alpha.sum())

    @torch.no_grad()
    def _text_probabilities(self, target_hidden: Tensor | None, labels: Tensor, soft: SoftLabels | None) -> Tensor:
        """The target's probability of each answer token, [tokens]."""
        if soft is not None:
            return labelled_probabilities(labels, soft)
        assert target_hidden is not None, "TrainConfig refuses this for cross entropy"
        ones = torch.ones(len(labels), device=labels.device)
        return (-self._divergence("ce", target_hidden, None, ones, labels, draft=self._target).per_token).exp()

    def _token_weights(self, batch: Batch, totals: StepTotals) -> Tensor:
        """Weight of each token in what is learned from the text, [tokens] in the order of `batch.labels`.

        Without a reward every token of the step counts alike. With one, (1 - a) r(y) - a D(y) is averaged over answers,
        and D(y) is the mean over an answer's own tokens (Agarwal et al. 2024, sections 2 and 3).
        """
        weight, lengths = self._objective.distill_weight, batch.response_mask.sum(1)
        if weight is None:
            return torch.full((int(lengths.sum()),), 1 / max(1, totals.tokens), device=lengths.device)
        return (weight / (lengths * totals.sequences)).repeat_interleave(lengths)

    def _policy_loss(self, batch: Batch, hidden: Tensor, advantages: Tensor, sequences: int) -> Tensor:
        """REINFORCE: minus the mean over answers of advantage times log q(answer), at the temperature of sampling."""
        objective = self._objective
        assert objective.distill_weight is not None, "advantages come from a reward"
        row = batch.predicting.nonzero()[:, 0]
        weights = (1 - objective.distill_weight) * advantages[row].to(hidden.dtype) / sequences
        return self._divergence("ce", hidden, None, weights, batch.labels, objective.sampling_temperature).loss

    @property
    def _share(self) -> float:
        """Factor on the divergence, the rest of which is left for cross entropy."""
        return self.scale * (1 - self._objective.ce_weight) if self.kind != "ce" else 1.0

    @property
    def selects(self) -> bool:
        """Whether a reference draft decides which tokens are trained on."""
        return self._reference is not None

    @torch.no_grad()
    def lags(self, batch: Batch, target_hidden: Tensor | None) -> Tensor:
        """KL(target || draft) minus the reference's, in nats, [tokens] in the order of `batch.labels`."""
        assert self._reference is not None, "tokens are selected by a reference draft"
        behind = []
        for model in (self._draft, self._reference):
            hidden = predicting_states(model, batch)
            with torch.autocast(hidden.device.type, enabled=False):
                hidden = hidden.to(model.head_weight.dtype)
                ones = torch.ones(hidden.shape[0], device=hidden.device)
                behind.append(self._divergence("fkl", hidden, target_hidden, ones, batch.labels, draft=model).per_token)
        return behind[0] - behind[1]

    @torch.no_grad()
    def _alpha(
        self, hidden: Tensor, target_hidden: Tensor | None, labels: Tensor, soft_labels: SoftLabels | None
    ) -> Tensor:
        """Alpha of every token, [tokens]."""
        ones = torch.ones(hidden.shape[0], device=hidden.device)
        return self._divergence(self.kind, hidden, target_hidden, ones, labels, soft_labels=soft_labels).alpha

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
        draft = draft or self._draft
        hidden, head = draft.loss_inputs(hidden)
        target_head = None
        if target_hidden is not None:
            target_hidden, target_head = self._target.loss_inputs(target_hidden)
        return fused_divergence(
            hidden,
            head,
            target_hidden,
            target_head,
            weights,
            kind=kind,
            beta=self.beta,
            eta=self._objective.eta,
            temperature=temperature or self.temperature,
            labels=labels,
            vocab_size=self._vocab_size,
            draft_softcap=draft.softcap,
            target_softcap=None if target_hidden is None else self._target.softcap,
            soft_labels=soft_labels,
            target_rows=target_rows,
        )


def divergence_of(loss: str, beta: float | None) -> tuple[str, float | None, float]:
    """The kernel's kind and beta for a configured loss, and the factor on its value.

    jsd(beta) as published tends to beta * fkl for a small beta, yet is defined as fkl itself at 0 (likewise at 1): near
    the ends beta is only a small learning rate, and the step to the end multiplies the loss by 1 / beta. Divided by
    beta (1 - beta) it has no jump. jeffreys is a sum by definition; halved it lies between fkl and rkl, so that one
    learning rate and one --ce-weight mean the same for all three.
    """
    if loss == "jeffreys":
        return loss, beta, 0.5
    if loss != "jsd":
        return loss, beta, 1.0
    beta = 0.5 if beta is None else beta
    if beta in (0, 1):
        return ("fkl" if beta == 0 else "rkl"), None, 1.0
    return loss, beta, 1 / (beta * (1 - beta))


def leave_one_out_advantages(rewards: list[float]) -> list[float]:
    """Each reward minus the mean of the step's others: a baseline that keeps the gradient unbiased."""
    if len(rewards) == 1:
        return list(rewards)
    total = sum(rewards)
    return [reward - (total - reward) / (len(rewards) - 1) for reward in rewards]
