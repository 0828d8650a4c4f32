"""What `specdistill plan` prints."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def plan_tables(found: dict[str, Any]) -> None:
    """Prints a plan.

    Args:
        found: From `evaluation.plan.plan`.
    """
    console, settings = Console(), found["settings"]
    tokens = found["tokens"]
    console.print(
        f"target of {settings['target_params']}, draft of {settings['draft_params']}, {settings['gpus']} x "
        f"{settings['gpu']}: {_count(tokens['trained'])} answer tokens in {found['steps']:,} steps",
        highlight=False,
    )
    work = Table(title="work")
    for name in ("stage", "tokens", "FLOPs", "accelerator hours"):
        work.add_column(name, justify="left" if name == "stage" else "right")
    counted = {
        "target writes": tokens["written"],
        "target labels": tokens["labelled"],
        "draft writes": tokens["own"],
        "draft trains": tokens["trained_with_prompts"],
    }
    for stage, flops in found["flops"].items():
        work.add_row(stage, _count(counted[stage]), f"{flops:.2e}", f"{found['gpu_hours'][stage]:,.1f}")
    work.add_row("all", "", "", f"{found['gpu_hours']['all']:,.1f}")
    console.print(work)
    console.print(f"wall time on {settings['gpus']}: {found['wall_hours']:,.1f} hours", highlight=False)
    memory = Table(title="memory of each, while training")
    for name in ("where the weights lie", "GiB", "fits"):
        memory.add_column(name, justify="left" if name != "GiB" else "right")
    for name, entry in found["memory_per_gpu"].items():
        memory.add_row(name, f"{entry['bytes'] / 2**30:,.1f}", "yes" if entry["fits"] else "no")
    console.print(memory)
    storage = found["storage"]
    console.print(
        f"stored labels ('specdistill annotate --top-k {settings['label_top_k']}'): "
        f"{storage['label_bytes_per_token']:.0f} bytes a token, {storage['labels'] / 1e9:,.1f} GB",
        highlight=False,
    )
    for line in found["assumptions"]:
        console.print(f"assumed: {line}", highlight=False, soft_wrap=True)


def _count(value: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:.0f}"
