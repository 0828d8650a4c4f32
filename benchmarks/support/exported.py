"""A draft in the formats of the engines that serve it."""

from __future__ import annotations

from pathlib import Path

from benchmarks.support.commands import run_command

VLLM_DRAFT, GGUF_DRAFT = "draft-vllm", "draft.gguf"


def export_draft(target: Path, target_gguf: Path, draft: Path, output: Path) -> None:
    """Writes the draft for vLLM and for llama.cpp into a folder, each where it is missing."""
    pair = ["--target", str(target), "--draft", str(draft)]
    checkpoint, gguf = output / VLLM_DRAFT, output / GGUF_DRAFT
    if not checkpoint.exists():
        run_command("export", *pair, "--format", "vllm", "--output", str(checkpoint))
    if not gguf.exists():
        run_command("export", *pair, "--format", "gguf", "--target-gguf", str(target_gguf), "--output", str(gguf))
