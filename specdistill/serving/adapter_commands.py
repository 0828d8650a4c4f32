"""Commands for a pair that holds adapters: engines draft with whole checkpoints, and most serve whole ones too."""

from __future__ import annotations

import dataclasses
import shlex

from specdistill.files.adapters import Adapter
from specdistill.serving import draft_flags
from specdistill.serving.check_config import CheckConfig
from specdistill.serving.engine_table import Drafting
from specdistill.serving.model_files import ModelFiles

MERGED, EXPORTED = "merged-target", "exported-draft"
"""Directories that the printed commands write and read."""
_FORMATS = {"vllm": "vllm", "sglang": "sglang", "tensorrt-llm": "vllm"}
"""Engine -> value of `export --format`; the others read transformers' form."""
_RANKS = (16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's --max-lora-rank from its default on."""


def as_written(target: ModelFiles, draft: ModelFiles) -> tuple[ModelFiles, ModelFiles]:
    """Both sides under the names that they have once `export` has written them; whole models keep theirs."""
    if target.adapter is not None:
        target = dataclasses.replace(target, name=MERGED)
    if target.adapter is not None or draft.adapter is not None:
        draft = dataclasses.replace(draft, name=draft.name if draft.is_gguf else EXPORTED)
    return target, draft


def preparation(engine: str, config: CheckConfig, target: ModelFiles, draft: ModelFiles) -> list[str]:
    """Commands to run before an engine's own, in order; empty for two whole models."""
    if target.adapter is None and draft.adapter is None:
        return []
    words = ["specdistill", "export", "--target", config.target, "--draft", config.draft or draft.name]
    # No form of a head is transformers' own.
    words += ["--format", _FORMATS.get(engine, "transformers" if draft.draft_kind is None else "vllm")]
    words += ["--output", EXPORTED]
    if config.adapter.target_base is not None:
        words += ["--target-base", config.adapter.target_base]
    if target.adapter is not None:
        words += ["--merged-target", MERGED]
    commands = [shlex.join(words)]
    if engine == "llama.cpp" and target.adapter is not None:
        commands.append(f"python convert_hf_to_gguf.py {MERGED} --outfile target.gguf  # from llama.cpp's repository")
    return commands


def with_lora(adapter: Adapter, draft: str, num_draft_tokens: int) -> str | None:
    """The command by which vLLM serves the base with the adapter beside it; None where it can't.

    vLLM takes low-rank matrices only: no weights that are saved whole, no DoRA, no biases, no added tokens.
    """
    settings = adapter.settings
    whole = settings.get("modules_to_save") or settings.get("trainable_token_indices") or adapter.rows is not None
    rank = next((rank for rank in _RANKS if rank >= adapter.rank), None)
    if adapter.kind != "LoRA" or whole or settings.get("use_dora") or settings.get("bias", "none") != "none":
        return None
    if rank is None:
        return None
    words = ["vllm", "serve", adapter.base, "--enable-lora", "--lora-modules", f"tuned={adapter.name}"]
    if rank > _RANKS[0]:
        words += ["--max-lora-rank", str(rank)]
    command = shlex.join([*words, *draft_flags.vllm(Drafting(draft=draft, num_draft_tokens=num_draft_tokens))])
    return f"{command}  # requests name the model 'tuned'; vLLM's tests cover LoRA beside EAGLE-3 drafts only"
