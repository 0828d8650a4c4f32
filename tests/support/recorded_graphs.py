"""CUDA graphs on a CPU: records the operations of a call, and replays them on the same tensors without its Python.

As on a GPU, a replay keeps every address and every number of the recorded call, and reading a value while recording is
an error. So a step that replays rightly here for other inputs is one that a CUDA graph may hold.
"""

from __future__ import annotations

import contextlib
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from specdistill.decoding import sampling
from specdistill.decoding.opaque_sample import opaque_sample

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique")
READING = ("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "numpy")


class Refusing(TorchFunctionMode):
    """Refuses to read values, which a CPU does without any operation."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in READING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        return function(*args, **(kwargs or {}))


class RecordedGraph(TorchDispatchMode):
    """Stands for `torch.cuda.CUDAGraph` and for its recording."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple] = []
        self._refusing = Refusing()

    def __enter__(self):
        self._refusing.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._refusing.__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function._schema.name.removeprefix("aten::").startswith(WAITING):
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        output = function(*args, **kwargs)
        self.operations.append((function, args, kwargs, output))
        return output

    def from_outside(self) -> list[torch.Tensor]:
        """Tensors that it reads or writes and did not make: a replay on a GPU needs them where they were."""
        made, found = set(), {}
        for _, args, kwargs, output in self.operations:
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, torch.Tensor) and _memory(leaf) not in made:
                    found[_memory(leaf)] = leaf
            made |= {_memory(leaf) for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)} - set(found)
        return list(found.values())

    def replay(self) -> None:
        for function, args, kwargs, output in self.operations:
            if _is_view(function, args, output):
                continue
            again = function(*args, **kwargs)
            if function._schema.is_mutable:
                continue
            for place, value in zip(tree_leaves(output), tree_leaves(again), strict=True):
                if isinstance(place, torch.Tensor):
                    place.copy_(value)


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_view(function, args, output) -> bool:
    """Whether the output is memory of an input, which then holds what was replayed before.

    Schemas don't say: `reshape` is a view or a copy.
    """
    if function._schema.is_mutable:
        return False
    inputs = {_memory(leaf) for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)}
    outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.numel()]
    return bool(outputs) and all(_memory(leaf) in inputs for leaf in outputs)


def _whole_sample(logits, *, seeds, positions, rounds, stream, temperature, top_k, top_p, min_p):
    """On a GPU sampling is kernels, which a graph holds; on a CPU numpy's operations are recorded as one."""
    return opaque_sample(logits, seeds, positions, rounds, stream, temperature, top_k, top_p, min_p)


@contextlib.contextmanager
def recorded_cuda_graphs():
    """Lets `captured_steps.cuda_graph` record inside the block; gives the graphs, as they are made."""
    made: list[RecordedGraph] = []

    def new_graph() -> RecordedGraph:
        made.append(RecordedGraph())
        return made[-1]

    with (
        mock.patch.object(sampling, "sample", _whole_sample),
        mock.patch.object(torch.cuda, "CUDAGraph", new_graph),
        mock.patch.object(torch.cuda, "graph", lambda graph, pool: graph),
        mock.patch.object(torch.cuda, "graph_pool_handle", object),
        mock.patch.object(torch.cuda, "Stream", mock.MagicMock),
        mock.patch.object(torch.cuda, "stream", lambda stream: contextlib.nullcontext()),
        mock.patch.object(torch.cuda, "current_stream", mock.MagicMock()),
    ):
        yield made
