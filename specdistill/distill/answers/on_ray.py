"""Shards written by a Ray cluster: the same files as on one machine, by as many workers as there are.

A worker that dies is replaced by Ray and its shard written again; a shard takes its name only when it is whole and is
left alone once it has it, so nothing is lost or done twice. The output folder must be one that all machines see.
"""

from __future__ import annotations

import contextlib
import importlib.util
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from specdistill.errors import ConfigError, SpecdistillError, first_line


class ShardWriter(Protocol):
    """Holds a model and writes one shard at a time."""

    def write(self, number: int) -> int:
        """Writes shard `number` where it is missing; how much of the progress bar that is."""
        ...


def check_installed() -> None:
    """Needs no cluster.

    Raises:
        ConfigError: Ray Data is not there.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("--ray needs Ray Data: pip install 'specdistill[ray]'")


def write_shards(
    make: Callable[..., ShardWriter],
    arguments: tuple[Any, ...],
    numbers: Sequence[int],
    *,
    address: str,
    workers: int,
    on_done: Callable[[int], None],
) -> None:
    """Writes shards in any order; returns when all are there.

    Args:
        make: Makes a worker's writer from `arguments`, once per worker; both travel by pickle.
        arguments: See there.
        numbers: Numbers of the shards.
        address: Address of the cluster; `local` starts one on this machine.
        workers: How many; each takes a GPU where the cluster has any.
        on_done: Called with what each shard's writer returned.

    Raises:
        SpecdistillError: No cluster, or a shard that failed for another reason than its worker's death.
    """
    import ray
    import ray.data
    import ray.exceptions

    began = not ray.is_initialized()
    _connect(address, workers)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    shards = ray.data.from_items([{"shard": number} for number in numbers], override_num_blocks=max(1, len(numbers)))
    done = shards.map_batches(
        _Worker,
        fn_constructor_args=(make, arguments),
        batch_size=1,
        num_cpus=1,
        num_gpus=gpus,
        compute=ray.data.ActorPoolStrategy(size=workers),
    )
    try:
        # Fetching ahead is left to a thread that outlives a failed run, and that would then start a cluster of its own.
        batches: Any = done.iter_batches(batch_size=1, prefetch_batches=0, batch_format="numpy")
        for batch in batches:
            if error := str(batch["error"][0]):
                raise SpecdistillError(f"a Ray worker failed: {error}; the same command goes on where it was")
            on_done(int(batch["done"][0]))
    except ray.exceptions.RayError as error:
        reason = first_line(error)
        raise SpecdistillError(f"Ray gave up: {reason}; the same command goes on where it was") from error
    finally:
        if began:
            ray.shutdown()


def _connect(address: str, workers: int) -> None:
    import ray

    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False, "ignore_reinit_error": True}
    try:
        with _own_sigterm():
            if address == "local":
                ray.init(num_cpus=workers, include_dashboard=False, **quiet)
            else:
                ray.init(address=address, **quiet)
    except (ConnectionError, ValueError) as error:
        raise SpecdistillError(f"--ray {address}: no cluster there ({first_line(error)})") from error


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keeps the handler of SIGTERM that is set before the block; Ray's own would end the process without a word."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # Only the main thread may set handlers.
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, before)


class _Worker:
    """Hands errors over as text: Ray would bury them in a traceback of its own."""

    def __init__(self, make: Callable[..., ShardWriter], arguments: tuple[Any, ...]) -> None:
        self._writer, self._error = None, ""
        try:
            self._writer = make(*arguments)
        except Exception as error:
            self._error = _one_line(error)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        done, error = 0, self._error
        try:
            if self._writer is not None:
                done = sum(self._writer.write(int(number)) for number in batch["shard"])
        except Exception as failure:
            error = _one_line(failure)
        return {"done": np.array([done]), "error": np.array([error])}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
