"""Tables of `specdistill plan`, on stdout."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from specdistill.evaluation.plan import MemoryUse, Plan
from specdistill.evaluation.plan_experts import PlannedExperts
from specdistill.evaluation.plan_kinds import PlannedKind, parallel_tokens
from specdistill.evaluation.plan_sizes import GIB
from specdistill.report.console import plain_console


def plan_tables(plan: Plan) -> None:
    """Prints a plan."""
    console, settings, guessed = plain_console(), plan.settings, plan.settings.training.parallel
    held = settings.models.target_resident_params
    mixture = "" if held is None else f" active of {held} parameters"
    console.print(
        f"target of {settings.target_params}{mixture}, {'parallel ' if guessed else ''}draft of {settings.draft_params}"
        f"{f' that guesses {guessed} tokens in one pass' if guessed else ''}, {settings.gpus} x {settings.gpu}: "
        f"{_count(plan.tokens.trained)} answer tokens in {plan.steps:,} steps",
        soft_wrap=True,
    )
    if guessed:
        console.print(
            "an ordinary draft is trained first and made parallel then: that training is not in these numbers, and the "
            "same command without --parallel plans it",
            soft_wrap=True,
        )
    console.print(_work_table(plan))
    console.print(f"wall time on {settings.gpus}: {_hours(plan.wall_hours)} hours")
    console.print(_memory_table(plan.memory_per_gpu))
    _smaller(console, plan, plan.memory_per_gpu)
    console.print(
        f"stored labels ('specdistill annotate --top-k {settings.training.label_top_k}'): "
        f"{plan.storage.label_bytes_per_token:.0f} bytes a token, {plan.storage.labels / 1e9:,.1f} GB",
    )
    console.print(_kinds_table(plan))
    if "parallel" in plan.kinds and not guessed:
        remark = "a parallel draft begins with a trained ordinary one, whose hours come on top of its own"
        console.print(remark, soft_wrap=True)
    _smaller(console, plan, plan.kinds)
    if plan.experts is not None:
        console.print(_expert_table(plan.experts))
    for line in plan.assumptions:
        console.print(f"assumed: {line}", soft_wrap=True)


def _work_table(plan: Plan) -> Table:
    table, counted = Table(title="work"), plan.tokens.by_stage()
    for name in ("stage", "tokens", "FLOPs", "accelerator hours"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage, flops in plan.flops.items():
        table.add_row(stage, _count(counted[stage]), f"{flops:.2e}", _hours(plan.gpu_hours[stage]))
    table.add_row("all", "", "", _hours(plan.gpu_hours["all"]))
    return table


def _kinds_table(plan: Plan) -> Table:
    settings = plan.settings
    names = {
        "independent": f"independent, {settings.draft_params}",
        "parallel": f"parallel, {parallel_tokens(settings)} tokens",
        "head": f"EAGLE-3 head, {settings.head.unroll} steps",
    }
    table = Table(title="kinds of drafts, trained on this text with the target in memory")
    table.add_column("")
    for key in plan.kinds:
        table.add_column(names[key], justify="right")
    kinds = plan.kinds.values()
    table.add_row("parameters trained", *(_count(kind.parameters) for kind in kinds))
    table.add_row("target reads, accelerator hours", *(_hours(kind.labels) for kind in kinds))
    table.add_row("draft trains, accelerator hours", *(_hours(kind.trains) for kind in kinds))
    fits = {True: "", False: ", does not fit"}
    table.add_row("GiB of an accelerator", *(f"{kind.memory / GIB:,.1f}{fits[kind.fits]}" for kind in kinds))
    kept = {True: "kept", False: "read again"}
    states = (f"{kind.states / 1e9:,.1f}, {kept[kind.states_are_kept]}" for kind in kinds)
    table.add_row("GB of the target's states", *states)
    table.add_row("GB on disk without the target", *(f"{kind.disk / 1e9:,.1f}" for kind in kinds))
    return table


def _smaller(console: Console, plan: Plan, uses: Mapping[str, MemoryUse] | Mapping[str, PlannedKind]) -> None:
    """Says which of the runs that don't fit would with fewer answers at a time; nothing where none would."""
    able = {name: use.largest_micro_batch for name, use in uses.items() if not use.fits and use.largest_micro_batch}
    if able:
        named = "; ".join(f"{name} with {count}" for name, count in able.items())
        planned = plan.settings.training.micro_batch_size
        console.print(f"hint: these fit with a --micro-batch-size below {planned}: {named}", soft_wrap=True)


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


def _hours(value: float) -> str:
    """Hours with one decimal; below an hour with two digits that count, so that nothing planned reads as nothing."""
    return f"{value:,.1f}" if value >= 1 or value == 0 else f"{value:.2g}"


def _count(value: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.2f}{unit}"
    return f"{value:.0f}"
