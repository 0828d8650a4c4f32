"""transformers' callbacks for our loop: whoever wrote one for `Trainer`, or uses a tracker, keeps it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

from specdistill.distill.training.settings import EvaluationSettings, OptimiserSettings
from specdistill.errors import ConfigError


def check_trackers(names: Sequence[str]) -> list[Any]:
    """The trackers' callback classes.

    Raises:
        ConfigError: transformers does not know the tracker, or its package is not installed.
    """
    classes = []
    for name in names:
        try:
            classes += get_reporting_integration_callbacks([name])
        except ValueError as error:
            raise ConfigError(f"--report-to {name}: {error}") from error
        if importlib.util.find_spec(name) is None and name != "tensorboard":
            raise ConfigError(f"--report-to {name} needs the package {name}: pip install {name}")
        if name == "tensorboard" and not any(map(_importable, ("tensorboard", "tensorboardX"))):
            raise ConfigError("--report-to tensorboard needs the package tensorboard: pip install tensorboard")
    return classes


class Callbacks:
    """Tells callbacks what happens, and knows whether one of them asked to stop.

    To be made before accelerate's `Accelerator`: the arguments that callbacks are given reset its state.
    """

    def __init__(
        self,
        callbacks: Sequence[TrainerCallback],
        optimiser: OptimiserSettings,
        evaluation: EvaluationSettings,
        output: Path,
        on_cpu: bool,
        is_main: bool = True,
    ) -> None:
        self._callbacks = [*callbacks, *(tracker() for tracker in check_trackers(evaluation.report_to))]
        self._handler: CallbackHandler | None = None
        self._control = TrainerControl()
        self._state = TrainerState(
            max_steps=optimiser.steps, num_train_epochs=1, is_local_process_zero=is_main, is_world_process_zero=is_main
        )
        if self._callbacks:
            self._arguments = TrainingArguments(
                output_dir=str(output),
                report_to="none",
                max_steps=optimiser.steps,
                per_device_train_batch_size=optimiser.batch_size,
                eval_steps=evaluation.eval_every,
                use_cpu=on_cpu,
                run_name=output.name,
            )
            # Asked for now, because it resets accelerate's state.
            _ = self._arguments.device

    def attach(self, model, tokenizer, optimizer, scheduler) -> None:
        """Tells the callbacks what is trained."""
        if self._callbacks:
            every = [DefaultFlowCallback(), *self._callbacks]
            self._handler = CallbackHandler(every, model, tokenizer, optimizer, scheduler)

    @property
    def stop(self) -> bool:
        return self._control.should_training_stop

    def begin(self) -> None:
        self._call("on_train_begin")

    def step_begin(self) -> None:
        self._call("on_step_begin")

    def step_end(self, step: int, logs: dict[str, Any]) -> None:
        """After each optimiser step."""
        self._state.global_step = step
        self._call("on_step_end")
        self._log(logs)

    def evaluated(self, step: int, metrics: dict[str, Any]) -> None:
        """After each evaluation on the held-out answers; names begin with eval_, as trackers expect."""
        self._state.global_step = step
        metrics = {f"eval_{name}": value for name, value in metrics.items()}
        self._call("on_evaluate", metrics=metrics)
        self._log(metrics)

    def saved(self) -> None:
        self._call("on_save")

    def end(self) -> None:
        self._call("on_train_end")

    def _log(self, logs: dict[str, Any]) -> None:
        numbers = {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
        self._state.log_history.append(numbers | {"step": self._state.global_step})
        self._call("on_log", logs=numbers)

    def _call(self, event: str, **arguments: Any) -> None:
        if self._handler is not None:
            self._control = self._handler.call_event(event, self._arguments, self._state, self._control, **arguments)


def _importable(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
