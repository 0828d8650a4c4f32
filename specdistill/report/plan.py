"""Tables of `specdistill plan`, on stdout."""

from __future__ import annotations

from rich.table import Table

from specdistill.evaluation.plan import MemoryUse, Plan
from specdistill.evaluation.plan_experts import PlannedExperts
from specdistill.evaluation.plan_kinds import PARALLEL_TOKENS
from specdistill.evaluation.plan_sizes import GIB
from specdistill.report.console import plain_console


def plan_tables(plan: Plan) -> None:
    """Prints a plan."""
    console, settings = plain_console(), plan.settings
    held = settings.models.target_resident_params
    mixture = "" if held is None else f" active of {held} parameters"
    console.print(
        f"target of {settings.target_params}{mixture}, draft of {settings.draft_params}, {settings.gpus} x "
        f"{settings.gpu}: {_count(plan.tokens.trained)} answer tokens in {plan.steps:,} steps",
    )
    console.print(_work_table(plan))
    console.print(f"wall time on {settings.gpus}: {plan.wall_hours:,.1f} hours")
    console.print(_memory_table(plan.memory_per_gpu))
    console.print(
        f"stored labels ('specdistill annotate --top-k {settings.training.label_top_k}'): "
        f"{plan.storage.label_bytes_per_token:.0f} bytes a token, {plan.storage.labels / 1e9:,.1f} GB",
    )
    console.print(_kinds_table(plan))
    if plan.experts is not None:
        console.print(_expert_table(plan.experts))
    for line in plan.assumptions:
        console.print(f"assumed: {line}", soft_wrap=True)


def _work_table(plan: Plan) -> Table:
    table, counted = Table(title="work"), plan.tokens.by_stage()
    for name in ("stage", "tokens", "FLOPs", "accelerator hours"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage, flops in plan.flops.items():
        table.add_row(stage, _count(counted[stage]), f"{flops:.2e}", f"{plan.gpu_hours[stage]:,.1f}")
    table.add_row("all", "", "", f"{plan.gpu_hours['all']:,.1f}")
    return table


def _kinds_table(plan: Plan) -> Table:
    settings = plan.settings
    names = {
        "independent": f"independent, {settings.draft_params}",
        "parallel": f"parallel, {settings.training.parallel or PARALLEL_TOKENS} tokens",
        "head": f"EAGLE-3 head, {settings.head.unroll} steps",
    }
    table = Table(title="kinds of drafts, trained on this text with the target in memory")
    table.add_column("")
    for key in plan.kinds:
        table.add_column(names[key], justify="right")
    kinds = plan.kinds.values()
    table.add_row("parameters trained", *(_count(kind.parameters) for kind in kinds))
    table.add_row("target reads, accelerator hours", *(f"{kind.labels:,.2f}" for kind in kinds))
    table.add_row("draft trains, accelerator hours", *(f"{kind.trains:,.2f}" for kind in kinds))
    fits = {True: "", False: ", does not fit"}
    table.add_row("GiB of an accelerator", *(f"{kind.memory / GIB:,.1f}{fits[kind.fits]}" for kind in kinds))
    kept = {True: "kept", False: "read again"}
    states = (f"{kind.states / 1e9:,.1f}, {kept[kind.states_are_kept]}" for kind in kinds)
    table.add_row("GB of the target's states", *states)
    table.add_row("GB on disk without the target", *(f"{kind.disk / 1e9:,.1f}" for kind in kinds))
    return table


def _expert_table(experts: PlannedExperts) -> Table:
    table = Table(title="one pass of the target over tokens of one answer")
    table.add_column("tokens")
    for tokens in experts.verify_cost:
        table.add_column(str(tokens), justify="right")
    table.add_row("distinct experts", *(f"{value:.1f}" for value in experts.distinct_experts.values()))
    table.add_row("time in plain steps", *(f"{value:.2f}" for value in experts.verify_cost.values()))
    return table


def _memory_table(memory: dict[str, MemoryUse]) -> Table:
    table = Table(title="memory of each accelerator, while training")
    for name in ("where the weights are", "GiB", "fits"):
        table.add_column(name, justify="left" if name != "GiB" else "right")
    for name, use in memory.items():
        table.add_row(name, f"{use.bytes / GIB:,.1f}", "yes" if use.fits else "no")
    return table


def _count(value: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:.0f}"
