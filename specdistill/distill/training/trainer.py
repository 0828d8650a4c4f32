"""The training loop: examples -> target's hidden states -> fused divergence -> draft gradient -> checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState
from transformers import TrainerCallback

from specdistill.data.batch import Example
from specdistill.distill.processes.ranks import ALONE, Ranks
from specdistill.distill.sequences.sources import Source
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.training import guard_rails, lora
from specdistill.distill.training.callbacks import Callbacks
from specdistill.distill.training.checkpoints import Checkpoints, RunState
from specdistill.distill.training.heldout import HeldOutScorer
from specdistill.distill.training.loss_settings import Objective
from specdistill.distill.training.settings import EvaluationSettings, OptimiserSettings
from specdistill.distill.training.step import NotFiniteError, Reward, StepMeasurement, StepRunner
from specdistill.errors import ServerError, SpecdistillError
from specdistill.files import atomic
from specdistill.models import LanguageModel, ModelPair
from specdistill.models.checkpoint import save_draft
from specdistill.progress import Progress, Task

HISTORY_FILE = "history.jsonl"


class DraftTrainer:
    """Trains the pair's draft in place and keeps the best checkpoint, by the held-out score, in the output directory.

    Args:
        pair: Target and draft; the target is never changed.
        source: Gives each step's examples.
        states: The target's hidden states of them.
        scorer: Judges the draft on held-out prompts.
        objective: Loss to minimise.
        optimiser: Steps, batch sizes, learning rate.
        evaluation: When to score and to save.
        output: Directory of the run.
        progress: Where the bar goes.
        title: Name of the bar.
        reference: AdaSPEC's reference draft.
        reward: Judges answers that the draft wrote.
        callbacks: transformers' callbacks; they may stop the run.
        ranks: The processes that train together; each holds the whole draft, the main one writes files.
        shards_draft: Whether the ranks share the draft's weights instead.
        labelled: Whether examples carry soft labels in place of a target in memory.
        resume: Go on from the newest checkpoint in the output directory.
    """

    def __init__(
        self,
        pair: ModelPair,
        source: Source,
        states: TargetStates,
        scorer: HeldOutScorer,
        objective: Objective,
        optimiser: OptimiserSettings,
        evaluation: EvaluationSettings,
        output: Path,
        progress: Progress,
        *,
        title: str = "training",
        reference: LanguageModel | None = None,
        reward: Reward | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        ranks: Ranks = ALONE,
        shards_draft: bool = False,
        labelled: bool = False,
        resume: bool = False,
    ) -> None:
        self.draft, self.scorer = pair.draft, scorer
        # Engines want the target's; a draft with another tokenizer keeps its own.
        self._vocabulary = pair.target if pair.same_tokenizer else pair.draft
        self._source = source
        self._optimiser, self._evaluation = optimiser, evaluation
        self._output, self._progress, self._title = output, progress, title
        self._ranks, self._labelled, self._resume = ranks, labelled, resume
        self._state = RunState()
        self.best: Any = None
        """Held-out records of the best draft so far."""
        # Before the runner: the arguments that callbacks are given reset accelerate's state.
        on_cpu = self.draft.device.type == "cpu"
        self._callbacks = Callbacks(callbacks, optimiser, evaluation, output, on_cpu, ranks.is_main)
        self._runner = StepRunner(
            pair,
            states,
            objective,
            optimiser,
            ranks,
            reference=reference,
            reward=reward,
            shards_draft=shards_draft,
            labelled=labelled,
        )
        self._shards = self._runner.shards
        self._checkpoints = Checkpoints(output, self.draft.model, self._runner, scorer, ranks.is_main)
        self._callbacks.attach(self.draft.model, self.draft.tokenizer, self._runner.optimizer, self._runner.schedule)

    @property
    def step(self) -> int:
        """Steps done; the one that runs counts."""
        return self._state.step

    @property
    def best_step(self) -> int:
        """Step of the best draft so far; 0 is the start."""
        return self._state.best_step

    @property
    def history(self) -> list[dict[str, Any]]:
        """One entry per evaluation, as in history.jsonl."""
        return self._state.history

    def train(self) -> None:
        """Runs until the last step, until patience ends or a callback says stop, or until Ctrl-C, which passes on after
        saving.

        Raises:
            SpecdistillError: The loss or the gradient is not finite; the best draft so far is on disk.
        """
        try:
            self._callbacks.begin()
            if not (self._resume and self._restore()):
                self.start_records = self.evaluate()
            self._run_steps()
        except KeyboardInterrupt:
            if self.best_step == 0 and self.step > 1 and self._ranks.is_main and not self._shards.sharded:
                # No evaluation has found a better draft yet, but what was learned so far must not be lost. Shards can't
                # be gathered here, where the other ranks may be anywhere; their last checkpoint stays.
                save_draft(self.draft, self._vocabulary, self._output, lora.merged(self.draft.model))
            raise
        finally:
            self.draft.model.eval()
            self.draft.weights_changed()
            self._callbacks.end()
            # accelerate keeps the precision in a global: the next run in this process may want another.
            AcceleratorState._reset_state()

    def train_step(self, examples: list[Example]) -> StepMeasurement:
        """Trains on this rank's share of one batch; all ranks call it together.

        Raises:
            SpecdistillError: The loss or the gradient is not finite; weights and examples of the step are kept.
        """
        try:
            return self._runner.run(examples)
        except NotFiniteError as error:
            raise SpecdistillError(self._keep_failed_step(examples, str(error))) from error

    def evaluate(self, measurements: dict[str, Any] | None = None) -> Any:
        """Scores the held-out answers, writes the history, and saves the draft where it is the best so far.

        Args:
            measurements: Numbers of the last step, for the history.

        Returns:
            The held-out records.
        """
        with self._shards.gathered():
            records = self.scorer.score(self.draft)
            means = self.scorer.means(records)
            self._write_history(measurements or {}, means)
            is_best = means[self.scorer.watched] > self._state.best_value
            if is_best:
                self._keep_best(records, means[self.scorer.watched])
            self._say_scores(means, is_best)
            return records

    def _run_steps(self) -> None:
        steps, state = self._optimiser.steps, self._state
        started, before = time.perf_counter(), state.tokens
        self.draft.model.train()
        with self._progress.task(self._title, steps, "steps") as task:
            task.advance(state.step)
            while state.step < steps:
                state.step += 1
                self._callbacks.step_begin()
                with guard_rails.out_of_memory_named(self._optimiser), self._kept_if_server_goes():
                    measurement = self.train_step(self._next_batch())
                state.tokens += measurement.tokens
                self._callbacks.step_end(state.step, measurement.to_json())
                task.advance()
                self._note(task, measurement, (state.tokens - before) / (time.perf_counter() - started))
                if state.step % self._evaluation.eval_every == 0 or state.step == steps or self._callbacks.stop:
                    sources = self._source.measurements(reset=True)
                    self.evaluate(measurement.to_json() | sources | {"tokens_seen": state.tokens})
                    self.draft.model.train()
                    if self._is_over():
                        break
                    self._checkpoint()

    def _next_batch(self) -> list[Example]:
        with self._shards.gathered():
            return self._source.next_batch(self.step)

    def _keep_failed_step(self, examples: list[Example], numbers: str) -> str:
        """Writes what reproduces the step; the line that says so."""
        # Examples of all ranks: a single one's would not give the step's loss again.
        everyones = self._ranks.gather(examples)
        names = ", ".join(example.prompt_id for example in everyones)
        reason = f"{numbers} at step {self.step} (prompts {names})"
        directory = guard_rails.failed_step(self._output, self.step)
        with self._shards.gathered():
            if self._ranks.is_main:
                guard_rails.dump_step(directory, self.step, self.draft.model, everyones, reason)
        return (
            f"{reason}; lower --learning-rate; the best draft so far (step {self.best_step}) is in {self._output}, "
            f"what reproduces the step in {directory.name} (specdistill.distill.reproduce.reproduce)"
        )

    def _note(self, task: Task, measurement: StepMeasurement, speed: float) -> None:
        own = "" if measurement.alpha is None else f"  alpha {measurement.alpha:.3f}"
        rejected = self._source.measurements().get("skd_rejection_rate")
        replaced = "" if rejected is None else f"  replaced {rejected:.2f}"
        best = self._state.best_value
        task.note(f"loss {measurement.loss:.3f}{own}  best held-out {best:.3f}{replaced}  {speed:.0f} tokens/s")

    def _write_history(self, measurements: dict[str, Any], means: dict[str, float]) -> None:
        scores = {self._prefix + name: value for name, value in means.items()}
        self.history.append({"step": self.step, **measurements, **scores})
        if self._ranks.is_main:
            lines = "".join(json.dumps(entry) + "\n" for entry in self.history)
            atomic.write_text(self._output / HISTORY_FILE, lines)
        self._callbacks.evaluated(self.step, scores)

    def _keep_best(self, records: Any, value: float) -> None:
        self.best, self._state.best_step, self._state.best_value = records, self.step, value
        if self.step and self._ranks.is_main:
            plain = self._shards.plain(self.draft)
            save_draft(plain, self._vocabulary, self._output, lora.merged(plain.model))
            self._callbacks.saved()

    def _say_scores(self, means: dict[str, float], is_best: bool) -> None:
        measure, watched = self.scorer.measure, self.scorer.watched
        warning = guard_rails.falling([entry[self._prefix + watched] for entry in self.history])
        if warning:
            remedy = "lower --learning-rate, or let a weak draft learn from the target longer (--target-fraction)"
            self._progress.say(f"warning: held-out {measure} ({watched}): {warning}; {remedy}")
        shown = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
        best = "  (best)" if self.step and is_best else ""
        self._progress.say(f"step {self.step}: held-out {measure}: {shown}{best}")

    @property
    def _prefix(self) -> str:
        """Start of the scores' names in the history."""
        return "heldout_alpha_" if self.scorer.measure == "alpha" else "heldout_"

    @contextlib.contextmanager
    def _kept_if_server_goes(self) -> Iterator[None]:
        """Writes the run as it was before a step whose labels never came: --resume then does the step again."""
        before = self._source.state_dict() if self._labelled else {}
        try:
            yield
        except ServerError:
            # Shards are gathered by all ranks together, and the others may have got their labels.
            if not self._shards.sharded:
                self._write_checkpoint(self.step - 1, before)
            raise

    def _checkpoint(self) -> None:
        if self.step % (self._evaluation.checkpoint_every or self._evaluation.eval_every) == 0:
            self._write_checkpoint(self.step, self._source.state_dict())

    def _write_checkpoint(self, step: int, source: dict[str, Any]) -> None:
        state = dataclasses.replace(self._state, step=step, source=source)
        self._checkpoints.write(state, self.start_records, self.best)

    def _restore(self) -> bool:
        """Takes up the run where its last checkpoint was written; False where there is none."""
        restored = self._checkpoints.restore()
        if restored is None:
            return False
        self._state, self.start_records, self.best = restored
        self._source.load_state_dict(self._state.source)
        self.draft.weights_changed()
        self._progress.say(f"going on after step {self.step}")
        return True

    def _is_over(self) -> bool:
        patience = self._evaluation.patience
        if patience and (self.step - self.best_step) // self._evaluation.eval_every >= patience:
            self._progress.say(f"stopped at step {self.step}: no new best since step {self.best_step}")
            return True
        if self._callbacks.stop and self.step < self._optimiser.steps:
            self._progress.say(f"stopped at step {self.step} by a callback")
            return True
        return False
