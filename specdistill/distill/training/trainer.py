"""The training loop: examples -> target's hidden states -> fused divergence -> draft gradient -> checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from accelerate.state import AcceleratorState
from transformers import TrainerCallback

from specdistill.data.batch import Example
from specdistill.distill.processes.ranks import ALONE, Ranks
from specdistill.distill.sequences.measurements import Measurements
from specdistill.distill.sequences.sources import Source
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.training import guard_rails, lora
from specdistill.distill.training.callbacks import Callbacks
from specdistill.distill.training.checkpoints import Boundary, Checkpoints, RunState
from specdistill.distill.training.held_signals import held_signals
from specdistill.distill.training.keeping import Keeper
from specdistill.distill.training.loss_settings import Objective
from specdistill.distill.training.measures import HeldOutMeasures, Records
from specdistill.distill.training.rewards import Reward
from specdistill.distill.training.settings import EvaluationSettings, OptimiserSettings
from specdistill.distill.training.step import NotFiniteError, StepMeasurement, StepRunner
from specdistill.errors import DataError, ServerError, SpecdistillError
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
        ranks: Processes that train together; each holds the whole draft, the main one writes files.
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
        self._source, self._optimiser, self._evaluation = source, optimiser, evaluation
        self._output, self._progress, self._title = output, progress, title
        self._ranks, self._labelled, self._resume, self.idle = ranks, labelled, resume, idle
        self._state = RunState()
        self._boundary: Boundary | None = None
        self.unmeasured = False
        """Whether the draft that was written is that of an interrupted run's last step, which nothing has measured."""
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

    @property
    def has_draft(self) -> bool:
        """Whether there is a draft to write besides the untrained start."""
        return self.unmeasured or len(self.history) > 1

    def train(self) -> None:
        """Runs until the last step, the end of patience, a callback's stop, or Ctrl-C, which passes on after saving.

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
            self._keep_boundary(with_draft=True)
            raise
        except (ServerError, DataError):  # A scorer of the user's fails, say.
            self._keep_boundary(with_draft=False)
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
            return self._runner.run(examples, self._updated)
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
            with held_signals():
                keeps = self.keeper.take(self._state, records)
                self._write_history(measurements or {}, self.measures.means(records), keeps)
                if keeps and self.step and self._ranks.is_main:
                    plain = self._shards.plain(self.draft)
                    save_draft(plain, self._vocabulary, self._output, lora.merged(plain.model))
                    self._callbacks.saved()
                self._stand()
            for line in self.keeper.lines(self._state):
                self._progress.say(line)
            return records

    def _run_steps(self) -> None:
        steps, state = self._optimiser.steps, self._state
        started, before = time.perf_counter(), state.tokens
        self.draft.model.train()
        with self._progress.task(self._title, steps, "steps") as task:
            task.advance(state.step)
            # A run that goes on may have been interrupted between a step and its evaluation.
            over = self._evaluate_step() if self._is_due() else self.keeper.no_patience_left(state)
            while state.step < steps and not over:
                state.step += 1
                self._callbacks.step_begin()
                with guard_rails.out_of_memory_named(self._optimiser, self.draft):
                    with self._shards.gathered():
                        examples = self._source.next_batch(state.step)
                    measurement = self.train_step(examples)
                self._callbacks.step_end(state.step, measurement.to_json())
                task.advance()
                self._note(task, measurement, (state.tokens - before) / (time.perf_counter() - started))
                over = (self._is_due() or self._callbacks.stop) and self._evaluate_step()

    def _is_due(self) -> bool:
        """Whether the last step is one to evaluate after, and has not been evaluated."""
        at_step = self.step % self._evaluation.eval_every == 0 or self.step == self._optimiser.steps
        return at_step and self.history[-1]["step"] != self.step

    def _evaluate_step(self) -> bool:
        """Evaluates the draft after a step, and writes a checkpoint; True where the run is over."""
        sources = self._source.measurements(reset=True)
        self.evaluate(self._state.measurement | sources | {"tokens_seen": self._state.tokens})
        self.draft.model.train()
        over = self._is_over()
        if not over and self.step % (self._evaluation.checkpoint_every or self._evaluation.eval_every) == 0:
            self._checkpoints.write(self._stand())
        return over

    def _keep_failed_step(self, examples: list[Example], numbers: str) -> str:
        """Writes what reproduces the step; the line that says so."""
        # Examples of all ranks: a single one's would not give the step's loss again.
        everyones = self._ranks.gather(examples)
        with self._shards.gathered():
            network = self.draft.model if self._ranks.is_main else None
            return guard_rails.keep_failed_step(self._output, self._state, network, everyones, numbers)

    def _note(self, task: Task, measurement: StepMeasurement, speed: float) -> None:
        own = "" if measurement.alpha is None else f"  alpha {measurement.alpha:.3f}"
        rejected = self._source.measurements().get("skd_rejection_rate")
        replaced = "" if rejected is None else f"  target replaced {100 * rejected:.0f} % of the draft's tokens"
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

    def _updated(self, measurement: StepMeasurement) -> None:
        """Takes in a step that has changed the weights."""
        self._state.tokens += measurement.tokens
        self._state.measurement = dict(measurement.to_json())
        self._stand()

    def _stand(self) -> Boundary:
        """Notes where the run stands, for an interruption before the next step is done."""
        self._boundary = Boundary.of(self._state, self.keeper.records, self._source.state_dict())
        return self._boundary

    def _keep_boundary(self, *, with_draft: bool) -> None:
        """Writes the run as it stood after its last step, so that --resume loses none.

        Args:
            with_draft: Also write the draft of that step where no later one than the start was measured.
        """
        if self._boundary is None:
            return
        self._state, self.keeper.records = self._boundary.state, dict(self._boundary.records)
        # Shards are gathered by all ranks together, and those may be anywhere; their last checkpoint stays.
        if self._shards.sharded or not self._ranks.is_main:
            return
        unmeasured = with_draft and bool(self.step) and len(self.history) == 1
        also = ", and its draft, which was not measured" if unmeasured else ""
        self._progress.say(f"writing a checkpoint after step {self.step}{also} (Ctrl-C again ends at once)")
        self._checkpoints.write(self._boundary)
        if unmeasured:
            save_draft(self.draft, self._vocabulary, self._output, lora.merged(self.draft.model))
            self.unmeasured = True  # Only now: a second Ctrl-C may have come before.

    def _restore(self) -> bool:
        """Takes up the run where its last checkpoint was written; False where there is none."""
        if (restored := self._checkpoints.restore()) is None:
            return False
        self._state, self.keeper.records = restored
        self._source.load_state_dict(self._state.source)
        self.draft.weights_changed()
        self._stand()
        self._progress.say(f"going on after step {self.step}")
        return True

    def _is_over(self) -> bool:
        if self.keeper.no_patience_left(self._state):
            self._progress.say(self.keeper.no_patience_line(self._state))
            return True
        if self._callbacks.stop and self.step < self._optimiser.steps:
            self._progress.say(f"stopped at step {self.step} by a callback")
            return True
        return False
