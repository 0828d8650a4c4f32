"""Checkpoints of a run: everything that the rest of it depends on, so that a resumed run is the same run.

`OUTPUT/checkpoints/step-000050/` holds the draft's weights in training precision, the optimiser's moments, the
schedule, the source's random streams, torch's own, the history and the held-out records. A checkpoint is written under
another name and renamed when it is complete, so the newest one that is there is good. The two newest are kept.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from specdistill.distill.processes import sharding
from specdistill.distill.sequences.measurements import Measurements
from specdistill.distill.training.step import StepRunner
from specdistill.errors import OutputError, first_line
from specdistill.files import atomic, run_settings

DIRECTORY = "checkpoints"
_KEPT = 2


class Records(Protocol):
    """Turns held-out records into tensors and back."""

    def to_tensors(self, records: Any) -> dict[str, Tensor]:
        """Records for a checkpoint, float64."""
        ...

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> Any:
        """Inverse of `to_tensors`."""
        ...


@dataclasses.dataclass
class RunState:
    """How far a run is, and the states that are restored besides weights and optimiser."""

    step: int = 0
    tokens: int = 0
    """Answer tokens trained on so far."""
    best_step: int = 0
    best_value: float = -math.inf
    """The watched number of that step, with the sign that makes more better."""
    waited: int = 0
    """Steps before `best_step` in which the watched number was no better; it only equalled that of then."""
    kept_step: int = 0
    """Step of the draft that is written; 0 is the start."""
    history: list[Measurements] = dataclasses.field(default_factory=list)
    source: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Random streams of the source."""
    schedule: dict[str, Any] = dataclasses.field(default_factory=dict)
    scaler: dict[str, Any] = dataclasses.field(default_factory=dict)
    """State of float16's gradient scaling; empty for the other precisions."""
    measurement: Measurements = dataclasses.field(default_factory=dict)
    """Numbers of the last step; a run that was interrupted in its evaluation writes them into the history later."""


@dataclasses.dataclass(frozen=True)
class Boundary:
    """Where a run stands between two steps: all that a checkpoint holds besides weights, optimiser and schedule."""

    state: RunState
    records: Mapping[str, Any]
    """Draft (start, best, last) -> its held-out records."""
    streams: Mapping[str, Tensor]
    """torch's random streams."""

    @classmethod
    def of(cls, state: RunState, records: Mapping[str, Any], source: dict[str, Any]) -> Boundary:
        """Copies where the run stands now.

        Args:
            state, records: The run's.
            source: State of the source's random streams.
        """
        copied = dataclasses.replace(state, history=list(state.history), source=source)
        return cls(copied, dict(records), {"cpu": torch.get_rng_state(), **_gpu_streams()})


class Checkpoints:
    """Checkpoints of one run.

    Args:
        output: Directory of the run.
        network: The draft's network.
        runner: Holds optimiser, schedule and scaler.
        records: Turns held-out records into tensors.
        is_main: Whether this rank writes files.
    """

    def __init__(self, output: Path, network: nn.Module, runner: StepRunner, records: Records, is_main: bool) -> None:
        self._output, self._network, self._runner = output, network, runner
        self._records, self._is_main = records, is_main

    def write(self, boundary: Boundary) -> None:
        """Writes where the run stands. Ranks that share the weights call it together.

        Args:
            boundary: The newest: weights, optimiser and schedule are taken as they are now.
        """
        # Shards are gathered by all ranks, whole weights are those of any.
        if not (self._is_main or self._runner.shards.sharded):
            return
        weights, moments = capture(self._network, self._runner.optimizer)
        if not self._is_main:
            return
        scaler = self._runner.scaler
        full = dataclasses.replace(
            boundary.state,
            schedule=self._runner.schedule.state_dict(),
            scaler={} if scaler is None else scaler.state_dict(),
        )
        records = {
            f"{name}/{key}": values
            for name, scores in boundary.records.items()
            for key, values in self._records.to_tensors(scores).items()
        }
        write(self._output, full, weights, moments, records, boundary.streams)

    def restore(self) -> tuple[RunState, dict[str, Any]] | None:
        """Restores weights, optimiser, schedule and random streams from the newest checkpoint; None where none is.

        Returns:
            The state, and the held-out records by draft.
        """
        stored = read(self._output, self._network, self._runner.optimizer)
        if stored is None:
            return None
        if self._is_main:
            # The interruption wrote it, and it speaks of the draft of then. The run's end writes it again.
            (self._output / run_settings.CARD_FILE).unlink(missing_ok=True)
        state, tensors = stored
        self._runner.schedule.load_state_dict(state.schedule)
        # The schedule writes the rate into the optimiser only when it steps.
        rates = self._runner.schedule.get_last_lr()
        for group, rate in zip(self._runner.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        if state.scaler and self._runner.scaler is not None:
            self._runner.scaler.load_state_dict(state.scaler)
        parts: dict[str, dict[str, Tensor]] = {}
        for name, values in tensors.items():
            which, _, key = name.partition("/")
            parts.setdefault(which, {})[key] = values
        return state, {name: self._records.from_tensors(part) for name, part in parts.items()}


def capture(network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and moments as files hold them: whole, wherever their shards lie. All ranks call this together.

    Args:
        network: Trained weights; frozen ones are left out, the start still has them.
        optimizer: Optimiser of these weights.
    """
    names = trained(network)
    weights = {name: sharding.full_tensor(parameter.detach()).contiguous() for name, parameter in names.items()}
    moments = {
        f"{name}/{key}": sharding.full_tensor(torch.as_tensor(value)).contiguous()
        for name, parameter in names.items()
        for key, value in optimizer.state[parameter].items()
    }
    return weights, moments


def write(
    output: Path,
    state: RunState,
    weights: dict[str, Tensor],
    moments: dict[str, Tensor],
    records: dict[str, Tensor],
    streams: Mapping[str, Tensor],
) -> None:
    """Writes a checkpoint and removes those that are no longer kept.

    Args:
        output: Directory of the run.
        state: How far the run is.
        weights, moments: From `capture`.
        records: Held-out records, flattened.
        streams: torch's random streams.

    Raises:
        OutputError: The disk is full; the earlier checkpoints are intact.
    """
    folder = output / DIRECTORY
    with atomic.new_directory(folder / f"step-{state.step:06d}") as temporary:
        save_file(weights, temporary / "network.safetensors")
        save_file(moments, temporary / "optimizer.safetensors")
        save_file(dict(streams), temporary / "random.safetensors")
        # Copies: the best may be the start itself, and safetensors refuses to write shared memory twice.
        save_file({name: values.clone() for name, values in records.items()}, temporary / "records.safetensors")
        (temporary / "state.json").write_text(json.dumps(dataclasses.asdict(state)))
    for old in _folders(output)[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def read(
    output: Path, network: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[RunState, dict[str, Tensor]] | None:
    """Restores the newest checkpoint into the network, the optimiser and torch's random streams; None where none is.

    Returns:
        The rest of the state, and the held-out records.

    Raises:
        OutputError: The checkpoint is damaged, or of a differently shaped draft.
    """
    for leftover in (output / DIRECTORY).glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    folders = _folders(output)
    if not folders:
        return None
    try:
        weights = load_file(folders[-1] / "network.safetensors")
        moments = load_file(folders[-1] / "optimizer.safetensors")
        streams = load_file(folders[-1] / "random.safetensors")
        records = load_file(folders[-1] / "records.safetensors")
        state = RunState(**json.loads((folders[-1] / "state.json").read_text()))
        names = trained(network)
        with torch.no_grad():
            for name, parameter in names.items():
                parameter.copy_(sharding.distributed_like(weights[name], parameter))
        # Where no step was taken, there are no moments yet.
        if moments:
            for name, parameter in names.items():
                # The fused optimiser wants its count of steps where the parameter is, too.
                optimizer.state[parameter] = {
                    "step": moments[f"{name}/step"].to(parameter.device),
                    **{
                        key: sharding.distributed_like(moments[f"{name}/{key}"], parameter)
                        for key in ("exp_avg", "exp_avg_sq")
                    },
                }
    except Exception as error:
        raise OutputError(
            f"the checkpoint {folders[-1]} can't be used ({first_line(error)}); remove it to go on from the "
            "one before, or start again with another --output"
        ) from error
    torch.set_rng_state(streams["cpu"])
    if "cuda" in streams and torch.cuda.is_available():
        torch.cuda.set_rng_state(streams["cuda"])
    return state, records


def newest_step(output: Path) -> int | None:
    """Step of the newest checkpoint; None where none is."""
    folders = _folders(output)
    return int(folders[-1].name.removeprefix("step-")) if folders else None


def remove(output: Path) -> None:
    """Removes all checkpoints: the run has ended."""
    shutil.rmtree(output / DIRECTORY, ignore_errors=True)


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """name -> parameter that the optimiser changes; a tied one once."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def _folders(output: Path) -> list[Path]:
    return sorted((output / DIRECTORY).glob("step-*"))


def _gpu_streams() -> dict[str, Tensor]:
    return {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
