"""vLLM's own Triton kernels from its Python files, where no vLLM can be imported."""

from __future__ import annotations

import contextlib
import sys
import types
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.language.extra import libdevice


def vllm_kernels(folder: Path, processors: int, device_library: Any = libdevice) -> Any:
    """vLLM's rejection sampler and filters without vLLM: packages that import nothing, and a platform with a GPU.

    Args:
        folder: `.../site-packages/vllm`.
        processors: Multiprocessors of the GPU that is claimed.
        device_library: Functions that Triton takes from the GPU's maker; its interpreter has none.
    """

    def module(name: str, **contents: Any) -> None:
        fake = types.ModuleType(name)
        vars(fake).update(contents)
        sys.modules[name] = fake

    def unset(name: str) -> bool:
        if name.startswith("__"):
            raise AttributeError(name)
        return False

    for name in ("", "v1", "v1/sample", "v1/sample/ops", "v1/worker", "v1/worker/gpu", "v1/worker/gpu/sample",
                 "v1/worker/gpu/spec_decode", "v1/watermarking", "v1/watermarking/prfs", "model_executor",
                 "model_executor/warmup", "utils"):  # fmt: skip
        module(".".join(["vllm", *filter(None, name.split("/"))]), __path__=[str(folder / name)])
    module("vllm.triton_utils", tl=tl, triton=triton, tldevice=device_library, HAS_TRITON=True)
    module("vllm.envs", __getattr__=unset)
    sys.modules["vllm"].envs = sys.modules["vllm.envs"]  # pyright: ignore[reportAttributeAccessIssue]
    platform = types.SimpleNamespace(is_cuda_alike=lambda: True, is_cuda=lambda: True, is_rocm=lambda: False)
    module("vllm.platforms", current_platform=platform)
    module("vllm.utils.gpu_sync_debug", gpu_sync_allowed=contextlib.nullcontext)
    module("vllm.utils.math_utils", next_power_of_2=triton.next_power_of_2)
    module("vllm.utils.platform_utils", num_compute_units=lambda *_: processors)
    from vllm.v1.sample.ops.topk_topp_triton import apply_top_k_top_p_triton  # pyright: ignore
    from vllm.v1.worker.gpu.sample.gumbel import apply_temperature  # pyright: ignore
    from vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils import rejection_sample  # pyright: ignore

    return types.SimpleNamespace(
        apply_top_k_top_p=apply_top_k_top_p_triton, apply_temperature=apply_temperature, reject=rejection_sample
    )
