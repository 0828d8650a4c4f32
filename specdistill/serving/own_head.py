"""The target's own head for `check`: whether it is there, whether it was lost, and how each engine drafts with it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import Literal

from specdistill.errors import ModelError
from specdistill.serving import draft_flags
from specdistill.serving.check_config import CheckConfig
from specdistill.serving.engine_table import DEFAULT_LENGTH, Drafting
from specdistill.serving.model_files import ModelFiles, read


@dataclass(frozen=True)
class OwnHeadVerdict:
    """Whether a target holds the layers by which it drafts for itself."""

    state: Literal["here", "lost", "none", "unknown"]
    """lost: its configuration or its type says that there is one, and the weights hold none. unknown: the weights are
    not here."""
    why: str
    """The reason, as it follows the state."""
    tensors: int = 0
    """Number of its tensors."""
    parameters: int = 0
    """Number of its parameters; 0 where only their names are known."""
    remedy: str | None = None
    """Command that brings it back, where it is lost."""
    commands: dict[str, str] = field(default_factory=dict)
    """Engine -> command line that drafts with it, where it is here."""


def find_own_head(config: CheckConfig) -> OwnHeadVerdict:
    """Looks for the target's own head in headers and JSON; reads no weights.

    Args:
        config: The target, and how the server will be started.

    Raises:
        ModelError: The configuration can't be read.
    """
    target = read(config.target, "target", config.adapter.target_base)
    return _verdict(target, config.server.num_draft_tokens or DEFAULT_LENGTH)


def require_own_head(target: str) -> None:
    """Checks before any server starts that a target can draft for itself.

    Raises:
        ModelError: It holds no head; says how to get one.
    """
    found = _verdict(read(target, "target"), 1)
    if found.state in ("lost", "none"):
        remedy = "" if found.remedy is None else f"; bring it back: {found.remedy}"
        raise ModelError(f"--method mtp needs the target's own head, and {target} holds none: {found.why}{remedy}")


def _verdict(target: ModelFiles, num_draft_tokens: int) -> OwnHeadVerdict:
    try:
        head = target.own_head("target")
    except ModelError as error:
        # A damaged file is no reason to tell nothing of the engines.
        return OwnHeadVerdict("unknown", str(error))
    claim = head.claim or "nothing in config.json says so"
    if head.tensors is None:
        if head.claim is None:
            return OwnHeadVerdict("none", claim)
        return OwnHeadVerdict("unknown", f"{claim}, but the weights are not here")
    if not head.tensors:
        if head.claim is None:
            return OwnHeadVerdict("none", claim)
        return OwnHeadVerdict("lost", f"{claim}, but the weights hold none of its tensors", remedy=_remedy(target))
    size = sum(tensor.size for tensor in head.tensors.values() if tensor.shape)
    if target.adapter is not None:
        why = f"{claim}; the base {target.adapter.base} holds it, and merging the adapter loses it"
        remedy = shlex.join(_carry(target.adapter.base, "merged-target"))
        return OwnHeadVerdict("lost", why, len(head.tensors), size, remedy)
    drafting = Drafting(method="mtp", num_draft_tokens=num_draft_tokens)
    engines = ("llama.cpp",) if target.is_gguf else ("vllm", "sglang")
    commands = {engine: shlex.join(draft_flags.command(engine, target.name, drafting)) for engine in engines}
    return OwnHeadVerdict("here", claim, len(head.tensors), size, commands=commands)


def _remedy(target: ModelFiles) -> str:
    if target.is_gguf:
        return "convert the checkpoint again, with its head (llama.cpp's convert_hf_to_gguf.py)"
    return shlex.join(_carry("BASE", target.name))


def _carry(base: str, target: str) -> list[str]:
    return [
        "specdistill",
        "carry-head",
        "--base",
        base,
        "--target",
        target,
        "--output",
        f"{target.rstrip('/')}-with-head",
    ]
