"""`vllm serve`, with and without a draft: how it is started for `bench --engine vllm`."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import sys

import torch

from specdistill.errors import ModelError
from specdistill.serving import draft_flags
from specdistill.serving.engine_table import Launch

NAME = "target"
"""The model's name in requests: a path would have to be quoted in each."""
_GPU_SHARE = 0.84
"""Share of a GPU's memory that all servers take together."""


def check_installed(engine_args: str) -> None:
    """Looks for vLLM; needs no model.

    Args:
        engine_args: The user's own flags; any will do.

    Raises:
        ModelError: vLLM is not there.
    """
    if importlib.util.find_spec("vllm") is None and shutil.which("vllm") is None:
        raise ModelError(
            "--engine vllm needs vLLM installed next to specdistill, or a program vllm on the PATH: pip install vllm"
        )


def check_method(method: str) -> None:
    """Looks for what one method needs besides vLLM.

    Raises:
        ModelError: It is not there. A program of another environment is taken at its word.
    """
    if method == "suffix" and importlib.util.find_spec("vllm") and not importlib.util.find_spec("arctic_inference"):
        raise ModelError(
            "suffix decoding in vLLM needs the package arctic-inference next to it: pip install arctic-inference==0.1.1"
        )


def command(launch: Launch) -> list[str]:
    """The command line that serves; see `vllm serve --help`."""
    # Not `python -m vllm`: builds for CPUs are packaged under another name, which that entry point trips over.
    if importlib.util.find_spec("vllm") is not None:
        line = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", launch.target]
    else:
        line = ["vllm", "serve", launch.target]
    line += ["--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(launch.port), "--dtype", launch.dtype]
    line += ["--max-model-len", str(launch.context), "--max-num-seqs", str(launch.batch_size)]
    if torch.device(launch.device).type == "cuda":
        line += ["--gpu-memory-utilization", f"{_GPU_SHARE / launch.servers:.2f}"]
    if launch.drafting is not None:
        line += draft_flags.vllm(launch.drafting)
    return line + shlex.split(launch.engine_args)


def environment(launch: Launch) -> dict[str, str]:
    """Variables that several servers on one machine need."""
    # A CPU build takes half of the memory for its cache, each of them.
    return {"VLLM_CPU_KVCACHE_SPACE": "1"} if torch.device(launch.device).type == "cpu" else {}
