"""The training loop: sequences -> target's hidden states -> fused divergence -> draft gradient -> checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import TrainerCallback, get_cosine_with_min_lr_schedule_with_warmup

from specdistill.data.batch import Example, Provenance, collate, join_soft_labels
from specdistill.distill.config import TrainConfig
from specdistill.distill.processes.ranks import ALONE, Ranks
from specdistill.distill.processes.sharding import Shards, whole
from specdistill.distill.sequences.sources import Source
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.training import checkpoints, guard_rails, lora
from specdistill.distill.training.callbacks import Callbacks
from specdistill.distill.training.checkpoints import RunState
from specdistill.distill.training.heldout import Look
from specdistill.distill.training.loss import DistillationLoss, StepTotals, leave_one_out_advantages
from specdistill.errors import ServerError, SpecdistillError
from specdistill.files import atomic
from specdistill.models import LanguageModel, ModelPair
from specdistill.models.checkpoint import is_fresh_cut, save_draft
from specdistill.progress import Progress, Task
from specdistill_kernels import SoftLabels

HISTORY_FILE = "history.jsonl"
_PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}

NOTHING = Example("nothing", (0,), (), ())
"""What a rank trains on that has no sequence left: its part of the loss is 0, but it joins the collectives."""
NOTHING_LABELLED = dataclasses.replace(
    NOTHING, soft_labels=SoftLabels(torch.zeros((0, 1), dtype=torch.int64), torch.zeros((0, 1)))
)

Reward = Callable[[Example], float]


class DraftTrainer:
    """Trains the pair's draft in place and keeps the best checkpoint, by the held-out look, in the output directory.

    Args:
        pair: Target and draft; the target is never changed.
        source: Gives each step's sequences.
        states: The target's hidden states of them.
        look: Judges the draft.
        config: Settings.
        output: Directory of the run.
        progress: Where the bar goes.
        reference: AdaSPEC's reference draft.
        reward: Judges answers that the draft wrote.
        callbacks: transformers' callbacks; they may stop the run.
        ranks: The processes that train together; each holds the whole draft, the main one writes files.
    """

    def __init__(
        self,
        pair: ModelPair,
        source: Source,
        states: TargetStates,
        look: Look,
        config: TrainConfig,
        output: Path,
        progress: Progress,
        *,
        reference: LanguageModel | None = None,
        reward: Reward | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        self.target, self.draft = pair.target, pair.draft
        # Engines want the target's; a draft with another tokenizer keeps its own.
        self._vocabulary = pair.target if pair.same_tokenizer else pair.draft
        self._source, self._states, self.look = source, states, look
        self._config, self._output, self._progress, self._reward = config, output, progress, reward
        self._ranks = ranks
        self.history: list[dict[str, Any]] = []
        self.best: Any = None
        self.best_step = 0
        self._best_value = -math.inf
        self.step = 0
        self._tokens = 0
        on_cpu = self.draft.device.type == "cpu"
        self._callbacks = Callbacks(callbacks, config, output, on_cpu, ranks.is_main)
        self._accelerator = Accelerator(
            mixed_precision=_PRECISIONS[config.precision],
            cpu=on_cpu,
            # Models are where --device put them.
            device_placement=False,
        )
        if config.gradient_checkpointing:
            # Only in train mode: rollouts run in eval mode, with their KV cache.
            # transformers renames the method; both take torch's arguments first.
            model = self.draft.model
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        loss = DistillationLoss(self.draft, self.target, config, reference)
        self._shards = Shards(loss, ranks, self.draft if config.shards_draft and ranks.world > 1 else None)
        if self._shards.sharded:
            # FSDP2 takes what runs first for the root: the whole must, before rollouts run its layers by themselves.
            soft = None if config.loss == "ce" else NOTHING_LABELLED.soft_labels
            # Gathered: its weights would stay gathered otherwise, and the optimiser get those instead of the shards.
            with torch.no_grad(), self._shards.gathered():
                loss(collate([NOTHING_LABELLED]).to(self.draft.device), None, StepTotals(0, 0), soft_labels=soft)
        parameters = [parameter for parameter in loss.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=learning_rate(config, self.draft), weight_decay=config.weight_decay, fused=True
        )
        if self._shards.sharded:
            # It needs no wrapper: its own hooks sum gradients.
            self._loss, self._optimizer = loss, self._accelerator.prepare(optimizer)
        else:
            self._loss, self._optimizer = self._accelerator.prepare(loss, optimizer)
        self._schedule = get_cosine_with_min_lr_schedule_with_warmup(
            self._optimizer, math.ceil(config.warmup * config.steps), config.steps, min_lr_rate=0.1
        )
        self._callbacks.attach(self.draft.model, self.draft.tokenizer, self._optimizer, self._schedule)

    def train(self) -> None:
        """Runs until the last step, until patience ends or a callback says stop, or until Ctrl-C, which passes on after
        saving.

        Raises:
            SpecdistillError: The loss or the gradient is not finite; the best draft so far is on disk.
        """
        config = self._config
        try:
            self._callbacks.begin()
            if not self._restored():
                self.start_records = self._look(0, {})
            started, before = time.perf_counter(), self._tokens
            self.draft.model.train()
            with self._progress.task(f"training ({config.method})", config.steps, "steps") as task:
                task.advance(self.step)
                while self.step < config.steps:
                    self.step += 1
                    self._callbacks.step_begin()
                    with guard_rails.out_of_memory_named(config), self._kept_if_server_goes():
                        measured = self._one_step(self._next_batch())
                    self._tokens += measured.pop("tokens")
                    self._callbacks.step_end(self.step, measured)
                    task.advance()
                    self._note(task, measured, (self._tokens - before) / (time.perf_counter() - started))
                    if self.step % config.eval_every == 0 or self.step == config.steps or self._callbacks.stop:
                        self._look(
                            self.step, measured | self._source.measurements(reset=True) | {"tokens_seen": self._tokens}
                        )
                        self.draft.model.train()
                        if self._is_over():
                            break
                        self._checkpoint()
        except KeyboardInterrupt:
            if self.best_step == 0 and self.step > 1 and self._ranks.is_main and not self._shards.sharded:
                # No look has found a better draft yet, but what was learned so far must not be lost. Shards can't be
                # gathered here, where the other ranks may be anywhere; their last checkpoint stays.
                save_draft(self.draft, self._vocabulary, self._output, lora.merged(self.draft.model))
            raise
        finally:
            self.draft.model.eval()
            self.draft.weights_changed()
            self._callbacks.end()
            # accelerate keeps the precision in a global: the next run in this process may want another.
            AcceleratorState._reset_state()

    def _next_batch(self) -> list[Example]:
        with self._shards.gathered():
            return self._source.next_batch(self.step)

    def _one_step(self, sequences: list[Example]) -> dict[str, Any]:
        config = self._config
        # Every rank passes through the network equally often, or those with more would wait in a collective for ever.
        most = self._ranks.largest_share(config.batch_size)
        size = config.micro_batch_size or most
        chunks = [sequences[start : start + size] for start in range(0, most, size)]
        # Counted now: sequences that were just written are as long as they are, whatever the data set says.
        tokens, count = self._ranks.total([sum(len(each.answer_ids) for each in sequences), len(sequences)])
        totals = StepTotals(int(tokens), int(count))
        advantages, measured = self._advantages(sequences)
        loss, alpha = 0.0, 0.0
        for index, chunk in enumerate(chunks):
            # A rank without a sequence has labels for none of its no tokens.
            present = chunk or [NOTHING_LABELLED if not config.target_is_present else NOTHING]
            soft = [each.soft_labels for each in present if each.soft_labels is not None]
            batch = collate(present).to(self.draft.device)
            soft_labels = SoftLabels(*(each.to(self.draft.device) for each in join_soft_labels(soft))) if soft else None
            # ce needs no target: its labels are the target's own tokens already.
            needed = config.loss != "ce" and not soft
            hidden = torch.cat(self._states.of(present)) if needed else None
            last = index == len(chunks) - 1
            with self._summed(last):
                start = index * size
                own = None if advantages is None else advantages[start : start + len(chunk)]
                # prepare() wraps this in for whole modules; a sharded one never went through it.
                with self._accelerator.autocast():
                    part = self._loss(batch, hidden, totals, own, soft_labels)
                # Wrappers average gradients over ranks; the loss is a sum over them.
                self._accelerator.backward(part.loss * self._accelerator.num_processes)
            loss += float(part.loss.detach())
            alpha += float(part.alpha_sum)
        loss, alpha = self._ranks.total([loss, alpha])
        total = self._accelerator.clip_grad_norm_(self._loss.parameters(), config.max_grad_norm)
        norm = float(whole(cast(torch.Tensor, total)))
        # float16's scaler meets infinite gradients on purpose, and skips such a step.
        if not (math.isfinite(loss) and (math.isfinite(norm) or config.precision == "float16")):
            # Of all ranks: a single one's would not give the step's loss again.
            everyones = self._ranks.gather(sequences)
            names = ", ".join(sequence.prompt_id for sequence in everyones)
            reason = f"loss {loss} with gradient norm {norm} at step {self.step} (prompts {names})"
            kept = guard_rails.failed_step(self._output, self.step)
            with self._shards.gathered():
                if self._ranks.is_main:
                    guard_rails.dump_step(kept, self.step, self.draft.model, everyones, reason)
            raise SpecdistillError(
                f"{reason}; lower --learning-rate; the best draft so far (step {self.best_step}) is in {self._output}, "
                f"what reproduces the step in {kept.name} (specdistill.distill.training.guard_rails.reproduce)"
            )
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.draft.weights_changed()
        return {
            "loss": loss,
            **({} if math.isnan(alpha) else {"alpha": alpha / max(1, totals.tokens)}),
            "grad_norm": norm,
            "learning_rate": self._schedule.get_last_lr()[0],
            **measured,
            "tokens": totals.tokens,
        }

    def _advantages(self, sequences: list[Example]) -> tuple[torch.Tensor | None, dict[str, float]]:
        """Of answers that the draft wrote, where there is a reward; and the mean reward for the history."""
        own = all(set(each.provenance) <= {int(Provenance.DRAFT)} for each in sequences)
        if self._reward is None or not own or not sequences:
            return None, {}
        rewards = [self._reward(each) for each in sequences]
        advantages = torch.tensor(leave_one_out_advantages(rewards), device=self.draft.device)
        return advantages, {"reward": sum(rewards) / len(rewards)}

    def _note(self, task: Task, measured: dict[str, Any], speed: float) -> None:
        own = f"  alpha {measured['alpha']:.3f}" if "alpha" in measured else ""
        rejected = self._source.measurements().get("skd_rejection_rate")
        replaced = "" if rejected is None else f"  replaced {rejected:.2f}"
        task.note(
            f"loss {measured['loss']:.3f}{own}  best held-out {self._best_value:.3f}{replaced}  {speed:.0f} tokens/s"
        )

    def _summed(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Ranks sum their gradients in a step's last pass only."""
        if last:
            return contextlib.nullcontext()
        return self._shards.summing_later() if self._shards.sharded else self._accelerator.no_sync(self._loss)

    def _look(self, step: int, measured: dict[str, Any]) -> Any:
        """Scores the held-out answers, writes the history, and saves the draft where it is the best so far."""
        with self._shards.gathered():
            return self._gathered_look(step, measured)

    def _gathered_look(self, step: int, measured: dict[str, Any]) -> Any:
        records = self.look.score(self.draft)
        now = self.look.means(records)
        prefix = "heldout_alpha_" if self.look.measure == "alpha" else "heldout_"
        found = {prefix + name: value for name, value in now.items()}
        self.history.append({"step": step, **measured, **found})
        if self._ranks.is_main:
            lines = "".join(json.dumps(entry) + "\n" for entry in self.history)
            atomic.write_text(self._output / HISTORY_FILE, lines)
        self._callbacks.evaluated(step, found)
        if now[self.look.watched] > self._best_value:
            self.best, self.best_step, self._best_value = records, step, now[self.look.watched]
            if step and self._ranks.is_main:
                plain = self._shards.plain(self.draft)
                save_draft(plain, self._vocabulary, self._output, lora.merged(plain.model))
                self._callbacks.saved()
        warning = guard_rails.falling([entry[prefix + self.look.watched] for entry in self.history])
        if warning:
            remedy = "lower --learning-rate, or let a weak draft learn from the target longer (--target-fraction)"
            self._progress.say(f"warning: held-out {self.look.measure} ({self.look.watched}): {warning}; {remedy}")
        shown = "  ".join(f"{name} {value:.3f}" for name, value in now.items())
        self._progress.say(
            f"step {step}: held-out {self.look.measure}: {shown}"
            + ("  (best)" if step and self.best_step == step else "")
        )
        return records

    @contextlib.contextmanager
    def _kept_if_server_goes(self) -> Iterator[None]:
        """A step whose labels never came is done again by --resume: the run is written as it was before it."""
        before = self._source.state_dict() if self._config.target_server else {}
        try:
            yield
        except ServerError:
            # Shards are gathered by all ranks together, and the others may have got their labels.
            if not self._shards.sharded:
                self._write_checkpoint(self.step - 1, before)
            raise

    def _checkpoint(self) -> None:
        if self.step % (self._config.checkpoint_every or self._config.eval_every) == 0:
            self._write_checkpoint(self.step, self._source.state_dict())

    def _write_checkpoint(self, step: int, source: dict[str, Any]) -> None:
        # Shards are gathered by all ranks, whole weights are those of any.
        if not (self._ranks.is_main or self._shards.sharded):
            return
        weights, moments = checkpoints.capture(self.draft.model, self._optimizer)
        if not self._ranks.is_main:
            return
        scaler = self._accelerator.scaler
        state = RunState(
            step,
            self._tokens,
            self.best_step,
            self._best_value,
            self.history,
            source,
            self._schedule.state_dict(),
            {} if scaler is None else scaler.state_dict(),
        )
        records = {
            f"{name}/{key}": values
            for name, found in (("start", self.start_records), ("best", self.best))
            for key, values in self.look.to_tensors(found).items()
        }
        checkpoints.write(self._output, state, weights, moments, records)

    def _restored(self) -> bool:
        """Takes up the run where its last checkpoint was written; False where there is none."""
        found = checkpoints.read(self._output, self.draft.model, self._optimizer) if self._config.resume else None
        if found is None:
            return False
        state, records = found
        self.step, self._tokens, self.history = state.step, state.tokens, state.history
        self.best_step, self._best_value = state.best_step, state.best_value
        parts = {"start": {}, "best": {}}
        for name, values in records.items():
            which, _, key = name.partition("/")
            parts[which][key] = values
        self.start_records, self.best = (self.look.from_tensors(parts[name]) for name in ("start", "best"))
        self._source.load_state_dict(state.source)
        self._schedule.load_state_dict(state.schedule)
        # The schedule writes the rate into the optimiser only when it steps.
        for group, rate in zip(self._optimizer.param_groups, self._schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        if state.scaler and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state.scaler)
        self.draft.weights_changed()
        self._progress.say(f"going on after step {self.step}")
        return True

    def _is_over(self) -> bool:
        patience = self._config.patience
        if patience and (self.step - self.best_step) // self._config.eval_every >= patience:
            self._progress.say(f"stopped at step {self.step}: no new best since step {self.best_step}")
            return True
        if self._callbacks.stop and self.step < self._config.steps:
            self._progress.say(f"stopped at step {self.step} by a callback")
            return True
        return False


def learning_rate(config: TrainConfig, draft: LanguageModel) -> float:
    """The configured peak, or one by the draft's size and whether it was just cut out of the target.

    A model that already predicts well is spoilt above 1e-4 unless it is tiny; a fresh cut has to be mended first and
    learns faster with more (SmolLM2 cut to 4 layers: held-out alpha 0.237 after 60 steps at 1.5e-3, 0.212 at 5e-4).
    Adapters start at zero and take about ten times the rate of full training (Hu et al. 2022, arXiv 2106.09685).
    """
    if config.learning_rate:
        return config.learning_rate
    tiny, small, large = (1.5e-3, 5e-4, 1e-4) if is_fresh_cut(draft) or config.lora_rank else (3e-4, 1e-4, 1e-5)
    return tiny if draft.num_parameters < 100e6 else small if draft.num_parameters < 300e6 else large
