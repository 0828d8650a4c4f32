"""Command lines that make each engine draft: `check` and `export` print what `bench` starts."""

from __future__ import annotations

import json


def llama_cpp(draft: str, num_draft_tokens: int) -> list[str]:
    """Flags of llama-server. Without --spec-type it loads the draft and never asks it."""
    return ["-md", draft, "--spec-type", "draft-simple", "--spec-draft-n-max", str(num_draft_tokens)]


def vllm(draft: str, num_draft_tokens: int, *, sampled: bool = False) -> list[str]:
    """Flags of `vllm serve`; `sampled` makes the draft sample in place of taking its likeliest token."""
    settings: dict[str, str | int] = {
        "method": "draft_model",
        "model": draft,
        "num_speculative_tokens": num_draft_tokens,
    }
    if sampled:
        settings["draft_sample_method"] = "probabilistic"
    return ["--speculative-config", json.dumps(settings)]


def sglang(draft: str, num_draft_tokens: int) -> list[str]:
    """Flags of `sglang.launch_server`. Its number of draft tokens counts the target's own too."""
    return [
        "--speculative-algorithm", "STANDALONE",
        "--speculative-draft-model-path", draft,
        "--speculative-num-steps", str(num_draft_tokens),
        "--speculative-eagle-topk", "1",
        "--speculative-num-draft-tokens", str(num_draft_tokens + 1),
    ]  # fmt: skip


SERVERS = {
    "vllm": (["vllm", "serve"], vllm),
    "sglang": (["python", "-m", "sglang.launch_server", "--model-path"], sglang),
    "llama.cpp": (["llama-server", "-m"], llama_cpp),
}
"""Engine, as `check` names it -> words before the target, and flags for the draft."""


def command(engine: str, target: str, draft: str, num_draft_tokens: int) -> list[str]:
    """Words of the command line that serves a pair.

    Args:
        engine: A key of `SERVERS`.
        target, draft: Directories, hub ids or .gguf files.
        num_draft_tokens: Draft tokens per verification.
    """
    start, flags = SERVERS[engine]
    return [*start, target, *flags(draft, num_draft_tokens)]
