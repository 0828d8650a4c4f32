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
from specdistill.distill.sequences.measurements import Measurements
from specdistill.distill.sequences.sources import Source
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.training import guard_rails, lora
from specdistill.distill.training.callbacks import Callbacks
from specdistill.distill.training.checkpoints import Checkpoints, RunState
from specdistill.distill.training.keeping import Keeper
from specdistill.distill.training.loss_settings import Objective
from specdistill.distill.training.measures import HeldOutMeasures, Records
from specdistill.distill.training.settings import EvaluationSettings, OptimiserSettings
from specdistill.distill.training.step import NotFiniteError, Reward, StepMeasurement, StepRunner
from specdistill.errors import ServerError, SpecdistillError
from specdistill.evaluation.to_json import finite
from specdistill.files import atomic
from specdistill.models import LanguageModel, ModelPair
from specdistill.models.checkpoint import save_draft
from specdistill.progress import Progress, Task

HISTORY_FILE = "history.jsonl"


class DraftTrainer:
    """Trains the pair's draft in place and keeps a checkpoint, the best or the last, in the output directory.

    Args:
        pair: Target and draft; the target is never changed.
        source: Gives each step's examples.
        states: The target's hidden states of them.
        measures: Judge the draft on held-out prompts.
        objective: Loss to minimise.
        optimiser: Steps, batch sizes, learning rate.
        evaluation: When to evaluate, what to keep.
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
        idle: Why nothing is to be trained: then only the start is measured.
    """

    def __init__(
        self,
        pair: ModelPair,
        source: Source,
        states: TargetStates,
        measures: HeldOutMeasures,
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
        idle: str | None = None,
    ) -> None:
        self.draft, self.measures = pair.draft, measures
        # Engines want the target's; a draft with another tokenizer keeps its own.
        self._vocabulary = pair.target if pair.same_tokenizer else pair.draft
        self._source = source
        self._optimiser, self._evaluation = optimiser, evaluation
        self._output, self._progress, self._title = output, progress, title
        self._ranks, self._labelled, self._resume, self.idle = ranks, labelled, resume, idle
        self._state = RunState()
        self.keeper = Keeper(measures, evaluation)
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
        self._checkpoints = Checkpoints(output, self.draft.model, self._runner, measures, ranks.is_main)
        self._callbacks.attach(self.draft.model, self.draft.tokenizer, self._runner.optimizer, self._runner.schedule)

    @property
    def step(self) -> int:
        """Steps done; the one that runs counts."""
        return self._state.step

    @property
    def state(self) -> RunState:
        """How far the run is, and which step is kept."""
        return self._state

    @property
    def history(self) -> list[Measurements]:
        """One entry per evaluation, as in history.jsonl."""
        return self._state.history

    def train(self) -> None:
        """Runs until the last step, until patience ends or a callback says stop, or until Ctrl-C, which passes on after
        saving.

        Raises:
            SpecdistillError: The loss or the gradient is not finite; the draft to keep so far is on disk.
        """
        try:
            self._callbacks.begin()
            if not (self._resume and self._restore()):
                self.evaluate()
            if self.idle is None:
                self._run_steps()
        except KeyboardInterrupt:
            if self._state.kept_step == 0 and self.step > 1 and self._ranks.is_main and not self._shards.sharded:
                # No evaluation has found a draft to keep yet, but what was learned must not be lost. Shards can't be
                # gathered here, where the other ranks may be anywhere; their last checkpoint stays.
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

    def evaluate(self, measurements: Measurements | None = None) -> Records:
        """Measures the draft on the held-out prompts, writes the history, and saves the draft where it is to be kept.

        Args:
            measurements: Numbers of the last step, for the history.

        Returns:
            The held-out records.
        """
        with self._shards.gathered():
            records = self.measures.score(self.draft)
            keeps = self.keeper.take(self._state, records)
            self._write_history(measurements or {}, self.measures.means(records), keeps)
            if keeps and self.step and self._ranks.is_main:
                plain = self._shards.plain(self.draft)
                save_draft(plain, self._vocabulary, self._output, lora.merged(plain.model))
                self._callbacks.saved()
            self._say_numbers(self.measures.means(records))
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
            f"{reason}; lower --learning-rate; the draft so far (step {self._state.kept_step}) is in {self._output}, "
            f"what reproduces the step in {directory.name} (specdistill.distill.reproduce.reproduce)"
        )

    def _note(self, task: Task, measurement: StepMeasurement, speed: float) -> None:
        own = "" if measurement.alpha is None else f"  alpha {measurement.alpha:.3f}"
        rejected = self._source.measurements().get("skd_rejection_rate")
        replaced = "" if rejected is None else f"  replaced {rejected:.2f}"
        best = self.keeper.best(self._state)
        task.note(f"loss {measurement.loss:.3f}{own}  best held-out {best}{replaced}  {speed:.0f} tokens/s")

    def _write_history(self, measurements: Measurements, means: dict[str, float], kept: bool) -> None:
        scores = {self.measures.history_key(name): value for name, value in means.items()}
        watched = self.measures.history_key(self.measures.watched)
        self.history.append({"step": self.step, **measurements, **scores, "watched": watched, "kept": kept})
        if self._ranks.is_main:
            lines = "".join(json.dumps(finite(entry), allow_nan=False) + "\n" for entry in self.history)
            atomic.write_text(self._output / HISTORY_FILE, lines)
        self._callbacks.evaluated(self.step, scores)

    def _say_numbers(self, means: dict[str, float]) -> None:
        for warning in self.keeper.warnings(self._state):
            self._progress.say(f"warning: {warning}")
        shown = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
        best = "  (best)" if self.step and self.step == self._state.best_step else ""
        self._progress.say(f"step {self.step}: held-out {self.measures.measure}: {shown}{best}")
        if not self.step and self.measures.caveat is not None:
            self._progress.say(self.measures.caveat)

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
        self._checkpoints.write(state, self.keeper.records)

    def _restore(self) -> bool:
        """Takes up the run where its last checkpoint was written; False where there is none."""
        restored = self._checkpoints.restore()
        if restored is None:
            return False
        self._state, self.keeper.records = restored
        self._source.load_state_dict(self._state.source)
        self.draft.weights_changed()
        self._progress.say(f"going on after step {self.step}")
        return True

    def _is_over(self) -> bool:
        if self.keeper.no_patience_left(self._state):
            best = self.measures.label(self.measures.watched)
            self._progress.say(f"stopped at step {self.step}: no better {best} since step {self._state.best_step}")
            return True
        if self._callbacks.stop and self.step < self._optimiser.steps:
            self._progress.say(f"stopped at step {self.step} by a callback")
            return True
        return False
