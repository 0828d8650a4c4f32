"""`vllm serve`, with and without a draft: how it is started for `bench --engine vllm`."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import sys

import torch

from specdistill.errors import ModelError

NAME = "target"
"""The model's name in requests: a path would have to be quoted in each."""


def check_installed() -> None:
    """Needs no model.

    Raises:
        ModelError: vLLM is not there.
    """
    if importlib.util.find_spec("vllm") is None and shutil.which("vllm") is None:
        raise ModelError("--engine vllm needs vLLM beside specdistill or a program vllm on the PATH: pip install vllm")


def command(
    target: str,
    draft: str | None,
    *,
    port: int,
    num_draft_tokens: int,
    rule: str,
    dtype: str,
    max_model_len: int,
    batch_size: int,
    device: str,
    more: str,
) -> list[str]:
    """The command line; see `vllm serve --help`.

    Args:
        target, draft: Directories or hub ids; None serves the target alone.
        port: On the loopback address.
        num_draft_tokens: gamma.
        rule: `sampled` makes the draft sample and keep its probabilities.
        dtype: Of the weights.
        max_model_len: Positions.
        batch_size: Requests at a time.
        device: Where it will run, as torch names it.
        more: The user's own flags, which win.
    """
    # Not `python -m vllm`: builds for CPUs are packaged under another name, which that entry point trips over.
    if importlib.util.find_spec("vllm") is not None:
        line = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", target]
    else:
        line = ["vllm", "serve", target]
    line += ["--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(port), "--dtype", dtype]
    line += ["--max-model-len", str(max_model_len), "--max-num-seqs", str(batch_size)]
    if torch.device(device).type == "cuda":
        line += ["--gpu-memory-utilization", "0.42"]
    if draft is not None:
        speculative = {"method": "draft_model", "model": draft, "num_speculative_tokens": num_draft_tokens}
        if rule == "sampled":
            speculative["draft_sample_method"] = "probabilistic"
        line += ["--speculative-config", json.dumps(speculative)]
    return line + shlex.split(more)


def environment(device: str) -> dict[str, str]:
    """What two servers on one machine need beside their flags."""
    # A CPU build takes half of the memory for its cache, each of them.
    return {"VLLM_CPU_KVCACHE_SPACE": "1"} if torch.device(device).type == "cpu" else {}
