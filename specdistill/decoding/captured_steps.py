"""Runs the steps of decoding as graphs: on a GPU as CUDA graphs, elsewhere compiled by torch.compile.

An eager pass of a small model is bound by the host, which launches some hundred kernels one after the other. A CUDA
graph launches all of them at once. It keeps every address and every number of Python, so whatever changes from step to
step must be in tensors that stay where they are: token ids, lengths, random counters, and the buffers of the cache.
Batches are filled up to a power of two with idle rows, and positions to an eighth of one, so few graphs serve a text.

Caches are kept from one call to the next together with their graphs, since a graph knows the addresses of one cache.
"""

from __future__ import annotations

import functools
import time
import types
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from specdistill.decoding import opaque_sample
from specdistill.decoding.ragged_cache import RaggedCache, RaggedLayer
from specdistill.decoding.step_runner import EAGER, Shapes, Step, rounded
from specdistill.models import LanguageModel

Call = Callable[..., tuple[Tensor, ...]]
Capture = Callable[[Call, tuple[Tensor, ...], "FixedCache"], Call]
"""Captures a call for inputs of the given shapes. What it returns takes such inputs."""
_WARM_UPS = 2
"""Calls before a capture: the first ones allocate workspaces and compile kernels, which no graph may hold."""
_MIB = 2**20

assert opaque_sample.opaque_sample, "registers the operation that compiled steps sample with"


@dataclass
class CaptureCosts:
    """Price of a runner's graphs so far."""

    graphs: int = 0
    """Number of them."""
    seconds: float = 0.0
    """Time of capturing, warm-up included; with torch.compile that of compiling."""
    mib: float = 0.0
    """GPU memory that they hold, without the caches; 0 on a CPU, where it is not known."""


class FixedCache(RaggedCache):
    """A cache whose buffers stay where they are, and the graphs that were captured for it.

    Args:
        model: Whose layers write it.
        rows: Rows of the buffers.
        capacity: Positions of each row.
    """

    def __init__(self, model: LanguageModel, rows: int, capacity: int) -> None:
        super().__init__(model.base_model, model.config, rows, capacity)
        self.rows, self.capacity = rows, capacity
        self.graphs: dict[Hashable, Call] = {}
        self.pool: Any = None
        """Memory of the graphs on a GPU. Those of another cache must not write over their outputs."""
        for layer in self.layers:
            if isinstance(layer, RaggedLayer):
                layer.stays = True

    def clear(self) -> None:
        """Forgets what the rows of an earlier call left: a NaN of theirs would get into sums as 0 * NaN."""
        with torch.inference_mode():
            for layer in self.layers:
                for name in ("keys", "values", "indexer_keys"):
                    buffer = getattr(layer, name, None)
                    if buffer is not None:
                        buffer.zero_()


@dataclass
class CapturedSteps:
    """The runner of one model whose steps are captured when their shapes first come up."""

    capture: Capture
    costs: CaptureCosts = field(default_factory=CaptureCosts)
    captures = True
    _free: list[FixedCache] = field(default_factory=list)

    def new_cache(self, owner: object, model: LanguageModel, batch: int, capacity: int) -> RaggedCache:
        if not torch.is_inference_mode_enabled():
            # Scoring, which reads whole texts: it can't write buffers that were made while generating.
            return EAGER.new_cache(owner, model, batch, capacity)
        rows, positions = row_bucket(batch), extent_bucket(capacity)
        fitting = [cache for cache in self._free if cache.rows >= rows and cache.capacity >= positions]
        if fitting:
            cache = min(fitting, key=lambda cache: cache.rows * cache.capacity)
            self._free.remove(cache)
            cache.clear()
        else:
            # Smaller ones would hardly be asked for again, and hold memory.
            self._free.clear()
            cache = FixedCache(model, rows, positions)
        weakref.finalize(owner, self._free.append, cache)
        return cache

    def run(
        self, cache: RaggedCache, name: Hashable, step: Step, lengths: tuple[int, int], inputs: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        if not isinstance(cache, FixedCache):
            return EAGER.run(cache, name, step, lengths, inputs)
        batch = len(inputs[0])
        rows, extent = row_bucket(batch), min(extent_bucket(lengths[0]), cache.capacity)
        # Idle rows keep nothing, and read token 0 at position 0 of rows that are in use no more.
        filled = tuple(_filled(tensor, rows) for tensor in inputs)
        key = (name, rows, extent, *(tensor.shape[1:] for tensor in inputs))
        replay = cache.graphs.get(key)
        if replay is None:
            call = functools.partial(step, Shapes(extent, 0))
            replay = cache.graphs[key] = self._captured(call, filled, cache)
        return tuple(output[:batch] for output in replay(*filled))

    def _captured(self, call: Call, inputs: tuple[Tensor, ...], cache: FixedCache) -> Call:
        on_gpu = inputs[0].is_cuda
        held, start = torch.cuda.memory_reserved() if on_gpu else 0, time.perf_counter()
        replay = self.capture(call, inputs, cache)
        self.costs.graphs += 1
        self.costs.seconds += time.perf_counter() - start
        self.costs.mib += (torch.cuda.memory_reserved() - held) / _MIB if on_gpu else 0.0
        return replay


def cuda_graph(call: Call, inputs: tuple[Tensor, ...], cache: FixedCache) -> Call:
    """Captures a call as a CUDA graph. Its outputs are the same tensors each time."""
    places = tuple(tensor.clone() for tensor in inputs)
    cache.pool = cache.pool or torch.cuda.graph_pool_handle()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            # Steps write the cache behind the kept tokens only, so calling them again changes nothing.
            call(*places)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=cache.pool):
        outputs = call(*places)

    def replay(*inputs: Tensor) -> tuple[Tensor, ...]:
        for place, tensor in zip(places, inputs, strict=True):
            place.copy_(tensor)
        graph.replay()
        return outputs

    return replay


def compiled(call: Call, inputs: tuple[Tensor, ...], cache: FixedCache, backend: str = "inductor") -> Call:
    """Compiles a call in full: a break in its graph is an error."""
    # Buffers that are made inside a graph would not be the cache's.
    call(*inputs)

    def step(*inputs: Tensor) -> tuple[Tensor, ...]:
        return call(*inputs)

    # torch.compile keeps its results by code, and checks all that it has for one code at every call.
    own = types.FunctionType(step.__code__.replace(), step.__globals__, step.__name__, None, step.__closure__)
    replay = torch.compile(own, fullgraph=True, dynamic=False, backend=backend)
    replay(*inputs)
    return replay


def row_bucket(rows: int) -> int:
    """The next power of two."""
    return 1 << (rows - 1).bit_length()


def extent_bucket(positions: int) -> int:
    """The next multiple of 64 and of an eighth of the power of two below: 8 sizes for each doubling of a text."""
    positions = rounded(positions)
    grain = 1 << max(0, positions.bit_length() - 4)
    return -(-positions // grain) * grain


def _filled(tensor: Tensor, rows: int) -> Tensor:
    if len(tensor) == rows:
        return tensor
    return torch.cat((tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])))
