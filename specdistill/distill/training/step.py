"""One optimiser step: micro-batches through the loss, gradients summed over processes, clipping, update."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup_lr_rate

from specdistill.data.batch import Batch, Example, collate, join_soft_labels
from specdistill.distill.processes.ranks import Ranks
from specdistill.distill.processes.sharding import Shards, full_tensor
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.training import lora
from specdistill.distill.training.adaspec import select_tokens
from specdistill.distill.training.head_loss import build_loss
from specdistill.distill.training.held_signals import held_signals
from specdistill.distill.training.loss import DistillationLoss, StepTotals
from specdistill.distill.training.loss_settings import Objective
from specdistill.distill.training.rewards import Reward, StepRewards, judge_step
from specdistill.distill.training.settings import OptimiserSettings
from specdistill.models import LanguageModel, ModelPair
from specdistill.models.checkpoint import is_fresh_cut
from specdistill_kernels import SoftLabels

_PRECISIONS: dict[str, Literal["no", "bf16", "fp16"]] = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}

Inputs = tuple[Batch, Tensor | None, SoftLabels | None]

NOTHING = Example("nothing", (0, 0), (), ())
"""Trained on with weight zero by a rank that has no example left, so that it joins the collectives. Of two tokens: a
head reads a token and the one before it."""
NOTHING_LABELLED = dataclasses.replace(
    NOTHING, soft_labels=SoftLabels(torch.zeros((0, 1), dtype=torch.int64), torch.zeros((0, 1)))
)


@dataclass(frozen=True)
class StepMeasurement:
    """Numbers of one optimiser step, over all ranks."""

    loss: float
    alpha: float | None
    """Mean alpha of the trained tokens; None for cross entropy, which looks at no target."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    learning_rate: float
    """Learning rate of the step."""
    tokens: int
    """Answer tokens trained on."""
    reward: float | None = None
    """Mean reward; None where nothing was judged."""

    def to_json(self) -> dict[str, float]:
        """The numbers for the history, without the tokens, which it holds as a running sum."""
        values = dataclasses.asdict(self)
        del values["tokens"]
        return {name: value for name, value in values.items() if value is not None}


def mixed_precision(precision: str, device: torch.device) -> Literal["no", "bf16", "fp16"]:
    """accelerate's name of the precision of the draft's forward pass.

    Args:
        precision: --precision.
        device: The draft's.
    """
    if precision == "auto":
        # On a CPU bfloat16 is slower than float32, and elsewhere nothing was tried.
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bfloat16" if native else "float32"
    return _PRECISIONS[precision]


class NotFiniteError(Exception):
    """Loss or gradient is NaN or infinite; the weights are those before the step."""

    def __init__(self, loss: float, grad_norm: float) -> None:
        super().__init__(f"loss {loss} with gradient norm {grad_norm}")


class StepRunner:
    """Holds what a step needs: the loss with the draft inside, optimiser, schedule, precision, shards.

    Args:
        pair: Target and draft; the draft's weights change in place.
        states: The target's hidden states.
        objective: Loss to minimise.
        settings: Batch sizes, learning rate, precision.
        ranks: The processes that train together.
        reference: AdaSPEC's reference draft.
        reward: Judges answers that the draft wrote.
        shards_draft: Whether the ranks share the draft's weights.
        labelled: Whether examples carry soft labels in place of a target in memory.
    """

    def __init__(
        self,
        pair: ModelPair,
        states: TargetStates,
        objective: Objective,
        settings: OptimiserSettings,
        ranks: Ranks,
        *,
        reference: LanguageModel | None = None,
        reward: Reward | None = None,
        shards_draft: bool = False,
        labelled: bool = False,
    ) -> None:
        self._draft, self._states, self._objective = pair.draft, states, objective
        self._settings, self._ranks, self._labelled, self._reward = settings, ranks, labelled, reward
        self._accelerator = Accelerator(
            mixed_precision=mixed_precision(settings.precision, pair.draft.device),
            cpu=pair.draft.device.type == "cpu",
            # Models are where --device put them.
            device_placement=False,
        )
        if settings.gradient_checkpointing:
            _checkpoint_activations(pair.draft.model)
        self._module = loss = build_loss(pair, objective, reference)
        self.shards = Shards(loss, ranks, pair.draft if shards_draft and ranks.world > 1 else None)
        if self.shards.sharded:
            self._claim_root(loss)
        groups, rate = lora.trained_groups(loss), learning_rate(settings, pair.draft)
        optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=settings.weight_decay, fused=True)
        if self.shards.sharded:
            # It needs no wrapper: its own hooks sum gradients.
            self._loss, self.optimizer = loss, self._accelerator.prepare(optimizer)
        else:
            self._loss, self.optimizer = self._accelerator.prepare(loss, optimizer)
        # This one's first step learns already; the plain warm-up starts at rate 0.
        self.schedule = get_cosine_with_min_lr_schedule_with_warmup_lr_rate(
            self.optimizer, math.ceil(settings.warmup * settings.steps), settings.steps, min_lr_rate=0.1
        )

    @property
    def scaler(self) -> Any:
        """Scaler of float16's gradients; None in other precisions."""
        return self._accelerator.scaler

    def run(
        self, examples: Sequence[Example], updated: Callable[[StepMeasurement], None] | None = None
    ) -> StepMeasurement:
        """Trains on this rank's examples; all ranks call it together.

        Args:
            examples: This rank's share of the batch.
            updated: Called with the step's numbers when the weights have changed. No stop signal comes in between.

        Raises:
            NotFiniteError: Nothing was updated.
        """
        totals = self._count(examples)
        rewards = judge_step(self._reward, examples, self._ranks)
        loss, alpha = self._ranks.total(list(self._forward_backward(examples, totals, rewards)))
        total_norm = self._accelerator.clip_grad_norm_(self._loss.parameters(), self._settings.max_grad_norm)
        norm = float(full_tensor(cast(Tensor, total_norm)))
        # float16's scaler meets infinite gradients on purpose, and skips such a step.
        if not (math.isfinite(loss) and (math.isfinite(norm) or self._settings.precision == "float16")):
            raise NotFiniteError(loss, norm)
        rate = float(self.schedule.get_last_lr()[0])
        measurement = StepMeasurement(
            loss=loss,
            alpha=None if math.isnan(alpha) else alpha / max(1, totals.tokens),
            grad_norm=norm,
            learning_rate=rate,
            tokens=totals.tokens,
            reward=None if rewards is None else rewards.mean,
        )
        with held_signals():
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad(set_to_none=True)
            self._draft.weights_changed()
            if updated is not None:
                updated(measurement)
        return measurement

    def _count(self, examples: Sequence[Example]) -> StepTotals:
        """Counts over all ranks, now: answers that were just written are as long as they are."""
        own = [sum(len(example.answer_ids) for example in examples), len(examples)]
        parallel, head = self._objective.parallel, self._objective.head
        if parallel is not None:
            own += guesses_by_depth(examples, parallel.tokens)
        if head is not None:
            own += head.rows([len(example.answer_ids) for example in examples])
        tokens, count, *by_depth = (int(total) for total in self._ranks.total(list(map(float, own))))
        return StepTotals(tokens, count, tuple(by_depth))

    def _forward_backward(
        self, examples: Sequence[Example], totals: StepTotals, rewards: StepRewards | None
    ) -> tuple[float, float]:
        """Loss and sum of alpha over this rank's micro-batches; gradients are in the parameters afterwards."""
        advantages = None
        if rewards is not None:
            advantages = torch.tensor(rewards.advantages, device=self._draft.device)
        # Every rank passes through the network equally often, or those with more would wait in a collective for ever.
        most = self._ranks.largest_share(self._settings.batch_size)
        size = self._settings.micro_batch_size or most
        starts = range(0, most, size)
        inputs = (self._inputs(examples[start : start + size]) for start in starts)
        selections: Sequence[Tensor | None] = [None] * len(starts)
        if self._module.selects:
            # The target's states are kept: a second pass of the target would cost more than they do.
            inputs = list(inputs)
            selections = self._select(inputs)
        loss, alpha = 0.0, 0.0
        for start, (batch, hidden, soft_labels), selection in zip(starts, inputs, selections, strict=True):
            own = None if advantages is None else advantages[start : start + size]
            with self._summed(last=start + size >= most):
                # prepare() wraps this in for whole modules; a sharded one never went through it. The target's pass is
                # outside: it keeps its own precision.
                with self._accelerator.autocast():
                    part = self._loss(batch, hidden, totals, own, soft_labels, selection)
                # Wrappers average gradients over ranks; the loss is a sum over them.
                self._accelerator.backward(part.loss * self._accelerator.num_processes)
            loss += float(part.loss.detach())
            alpha += float(part.alpha_sum)
        return loss, alpha

    def _select(self, inputs: Sequence[Inputs]) -> list[Tensor]:
        """AdaSPEC's weights of this rank's tokens by micro-batch, chosen among the tokens of the whole step."""
        lags: list[float] = []
        for batch, hidden, _ in inputs:
            with self._accelerator.autocast():
                lags += self._module.lags(batch, hidden).tolist()
        before = sum(self._ranks.gather([len(lags)])[: self._ranks.rank])
        everyones = torch.tensor(self._ranks.gather(lags), device=self._draft.device)
        own = select_tokens(everyones, self._objective.select_fraction)[before : before + len(lags)]
        return list(own.split([len(batch.labels) for batch, _, _ in inputs]))

    def _inputs(self, chunk: Sequence[Example]) -> Inputs:
        """Batch, target's hidden states and soft labels of a micro-batch, on the draft's device."""
        present = chunk or [NOTHING_LABELLED if self._labelled else NOTHING]
        device = self._draft.device
        soft = [example.soft_labels for example in present if example.soft_labels is not None]
        soft_labels = SoftLabels(*(part.to(device) for part in join_soft_labels(soft))) if soft else None
        # Cross entropy needs no target: its labels are the target's own tokens already.
        needed = self._objective.needs_target and not soft
        hidden = torch.cat(self._states.hidden_states(present)) if needed else None
        return self._states.with_features(collate(present).to(device), present), hidden, soft_labels

    def _summed(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Ranks sum their gradients in a step's last pass only."""
        if last:
            return contextlib.nullcontext()
        return self.shards.summing_later() if self.shards.sharded else self._accelerator.no_sync(self._loss)

    def _claim_root(self, loss: DistillationLoss) -> None:
        """Runs the sharded module once: FSDP2 takes what runs first for the root, and rollouts run its layers alone."""
        soft = NOTHING_LABELLED.soft_labels if self._objective.needs_target else None
        # Gathered: its weights would stay gathered otherwise, and the optimiser get those instead of the shards.
        with torch.no_grad(), self.shards.gathered():
            loss(collate([NOTHING_LABELLED]).to(self._draft.device), None, StepTotals(0, 0), soft_labels=soft)


def guesses_by_depth(examples: Sequence[Example], num_tokens: int) -> list[int]:
    """Guesses of a parallel draft by how far they look ahead, from 1 to `num_tokens`."""
    masks = [count for example in examples for count in example.masks or ()]
    own = sum(len(example.answer_ids) for example in examples)
    return [own, *(sum(count >= depth for count in masks) for depth in range(1, num_tokens))]


def learning_rate(settings: OptimiserSettings, draft: LanguageModel) -> float:
    """The peak that was set, or one by the draft's size and whether it has much to learn.

    A model that already predicts well is spoilt above 1e-4 unless it is tiny; a fresh cut has to be mended first and
    learns faster with more (SmolLM2 cut to 4 layers: held-out alpha 0.237 after 60 steps at 1.5e-3, 0.212 at 5e-4).
    So has a trained draft that becomes a parallel one (RATES).
    Adapters start at zero and take about ten times the rate of full training (Hu et al. 2022, arXiv 2106.09685).
    """
    if settings.learning_rate:
        return settings.learning_rate
    much = is_fresh_cut(draft) or draft.learns_to_guess or settings.lora_rank
    tiny, small, large = (1.5e-3, 5e-4, 1e-4) if much else (3e-4, 1e-4, 1e-5)
    return tiny if draft.num_parameters < 100e6 else small if draft.num_parameters < 300e6 else large


def _checkpoint_activations(model: Any) -> None:
    # Only in train mode: rollouts run in eval mode, with their KV cache.
    # transformers renames the method; both take torch's arguments first.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
