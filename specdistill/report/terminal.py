"""Tables for people, on stdout."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from specdistill.evaluation.summaries import AnnotateSummary, GenerateSummary, TrainSummary

MEANING = {
    "greedy": "argmax agreement: every engine at temperature 0",
    "sampled": "sum min(p, q): transformers, vLLM probabilistic",
    "argmax_draft": "p(argmax q): vLLM default, SGLang, llama.cpp above 0",
}

SURPRISING = 0.05
"""Relative distance of an engine's counter from the prediction that chance and the ends of answers don't explain."""
LOSSY = "LOSSY: the rule lenient does not keep the target's distribution"
SAMPLED = "lossless: not checked here, where the engine samples; bench --temperature 0 compares its greedy output"


class AlphaRow(NamedTuple):
    """One line of the alpha table, already looked up in the report."""

    rule: str
    meaning: str
    alpha: dict[str, Any]
    other: dict[str, Any] | None
    difference: dict[str, Any] | None


def alpha_rows(report: dict[str, Any]) -> list[AlphaRow]:
    """The rules worth showing: at temperature 0 all agree, so those that sample are shown at temperature 1 instead."""
    acceptance, other = report["acceptance"], report.get("compare")
    difference = other["difference"] if other else {}
    rows = []
    for rule, meaning in MEANING.items():
        if rule not in acceptance["alpha"]:
            # Scored without the target, which this rule needs.
            continue
        at_1 = acceptance.get("alpha_at_temperature_1", {})
        if rule in at_1:
            found = (
                at_1[rule],
                other and other["alpha_at_temperature_1"][rule],
                other and difference["at_temperature_1"][rule],
            )
            rows.append(AlphaRow(f"{rule}, at temperature 1", meaning, *found))
        else:
            found = (acceptance["alpha"][rule], other and other["alpha"][rule], other and difference[rule])
            rows.append(AlphaRow(rule, meaning, *found))
    return rows


def estimate(value: dict[str, Any], digits: int = 3, sign: str = "") -> str:
    """`0.512 [0.480, 0.541]`; `unknown` where an engine does not tell."""
    if not math.isfinite(value["mean"]):
        return "unknown"
    low, high = value["ci95"]
    return f"{value['mean']:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def training_table(summary: TrainSummary) -> None:
    """Prints what `train_draft` returned."""
    console = Console()
    alpha = summary.measure == "alpha"
    table = Table(title=f"held-out {summary.measure}, {summary.heldout_prompts} prompts that training never saw")
    for name in ("rule" if alpha else "of", "before", "after", "paired difference [95 %]"):
        table.add_column(name, justify="left" if name in ("rule", "of") else "right")
    for rule, gain in summary.gain.items():
        before, after = summary.before[rule], summary.after[rule]
        table.add_row(rule, f"{before:.3f}", f"{after:.3f}", estimate(gain.to_json(), sign="+"))
    console.print(table)
    if summary.best_step == 0:
        console.print("Training found nothing better than the draft it started from; that draft was written unchanged.")
    console.print(f"draft: {summary.output} (best step {summary.best_step} of {summary.steps})", soft_wrap=True)


def generation_table(summary: GenerateSummary) -> None:
    """Prints what `generate` returned."""
    console = Console()
    generators = summary.generators
    table = Table(title=f"answers in {escape(summary.output)}")
    table.add_column("")
    for role, generator in generators.items():
        table.add_column(f"{role}: {escape(generator.name)}", justify="right")
    unit = {None: "sampling FLOPs", "compute": "sampling FLOPs", "cost": "price"}[summary.match]
    lines = {
        "prompts": ("prompts", "{:,}"),
        "rollouts": ("answers", "{:,}"),
        "tokens": ("tokens", "{:,}"),
        "budget": (unit, "{:.3g}"),
        "distinct_per_prompt": ("different answers per prompt", "{:.2f}"),
        "target_log_likelihood": ("target's mean log-likelihood per token", "{:.3f}"),
        "mean_score": ("mean score", "{:.3f}"),
        "coverage": ("prompts with an answer that scored above 0", "{:.1%}"),
    }
    for key, (label, form) in lines.items():
        if getattr(generators["target"], key) is not None:
            table.add_row(label, *(form.format(getattr(generator, key)) for generator in generators.values()))
    console.print(table)


def annotation_lines(summary: AnnotateSummary) -> None:
    """Prints what `annotate` returned."""
    print(
        f"{summary.answers:,} answers, {summary.tokens:,} tokens labelled in {summary.output}\n"
        f"{summary.labels_per_token:.1f} labels and {summary.bytes_per_token:.0f} bytes per token "
        f"(at most {summary.planned_bytes_per_token:.0f} were planned)"
    )


def bench_tables(report: dict[str, Any]) -> None:
    """Prints the bench report."""
    console = Console()
    setup, acceptance, latency, economics = (report[key] for key in ("setup", "acceptance", "latency", "economics"))
    target, draft = report["target"], report["draft"]
    in_engine = setup["engine"] != "specdistill"
    head = f", head of {draft['head_size']:,} ids" if "head_size" in draft else ""
    console.print(
        f"target {escape(target['name'])} ({target['parameters'] / 1e6:.1f}M)   "
        f"draft {escape(draft['name'])} ({draft['parameters'] / 1e6:.1f}M{head})   "
        f"{setup['device']}, {setup['threads']} threads"
        + (f"   in {escape(setup['engine_version'])}, which accepts by {setup['rule']}" if in_engine else ""),
        soft_wrap=True,
    )
    if "partial" in report:
        partial = report["partial"]
        console.print(
            f"[bold]INCOMPLETE[/bold]: {partial['prompts_done']} of {partial['prompts_asked']} prompts; "
            f"{escape(partial['why'])}",
            soft_wrap=True,
            highlight=False,
        )
    _alpha_table(console, report)
    _positions(console, report)
    categories = Table(title="by category")
    for name in ("category", "prompts", f"alpha {setup['predicting_rule']}", "tokens per target call"):
        categories.add_column(name, justify="left" if name == "category" else "right")
    for name, row in acceptance["by_category"].items():
        numbers = [f"{row[key]:.3f}" for key in (f"alpha_{setup['predicting_rule']}", "mean_acceptance_length")]
        categories.add_row(escape(name), str(row["prompts"]), *numbers)
    console.print(categories)

    speed = Table(title=f"speed, batch {setup['batch_size']}, {setup['latency_prompts']} prompts, interleaved")
    for name in ("", "tokens/s", "first token, s", "per token, s"):
        speed.add_column(name, justify="left" if not name else "right")
    for name, row in (("plain target", latency["baseline"]), ("speculative", latency["speculative"])):
        numbers = (row["tokens_per_second"], row["time_to_first_token"], row["time_per_output_token"])
        speed.add_row(name, f"{numbers[0]:.2f}", f"{numbers[1]:.3f}", f"{numbers[2]:.4f}")
    console.print(speed)
    gamma = setup["num_draft_tokens"]
    threshold = economics["break_even_alpha"]
    predicted, perfect = economics["predicted_speedup"][str(gamma)], economics["perfect_draft_speedup"]
    needed = "none" if threshold is None else f"{threshold:.3f}"
    facts = [f"speed-up, measured: {estimate(latency['speedup'], 2)} with {gamma} draft tokens"]
    if in_engine:
        facts.append(f"speed-up, predicted: {predicted:.2f}; a perfect draft {perfect:.2f}")
        facts.append(
            f"a round of {gamma} draft tokens and their check takes {economics['round_cost'][str(gamma)]:.2f} target "
            f"steps; break-even alpha {needed}"
        )
    else:
        facts += [
            f"speed-up, predicted: {predicted:.2f}; best with {economics['best_num_draft_tokens']} draft tokens; a "
            f"perfect draft {perfect:.2f}",
            f"costs in target steps: draft step {economics['cost_ratio']:.3f}, checking {gamma + 1} tokens "
            f"{economics['verify_cost'][str(gamma + 1)]:.2f}; break-even alpha {needed}",
            f"time inside the models: {latency['engine_efficiency']:.3f} of the decoding time",
        ]
    facts.append(_lossless_line(report["lossless"]))
    for fact in facts:
        console.print(fact, soft_wrap=True, highlight=False)
    console.print(
        f"[bold]verdict: {economics['verdict']}[/bold] - {escape(economics['why'])}", soft_wrap=True, highlight=False
    )


def _alpha_table(console: Console, report: dict[str, Any]) -> None:
    other = report.get("compare")
    table = Table(title=f"alpha on {report['acceptance']['tokens_scored']:,} tokens that the target wrote")
    table.add_column("rule")
    table.add_column("alpha [95 %]", justify="right")
    if other:
        table.add_column(escape(other["draft"]["name"]), justify="right")
        table.add_column("paired difference", justify="right")
    table.add_column("means")
    for row in alpha_rows(report):
        cells = [row.rule, estimate(row.alpha)]
        if row.other and row.difference:
            cells += [estimate(row.other), estimate(row.difference, sign="+")]
        table.add_row(*cells, row.meaning)
    console.print(table)


def _positions(console: Console, report: dict[str, Any]) -> None:
    acceptance = report["acceptance"]
    if acceptance["by_position"]:
        table = Table(title="acceptance by position in the draft, real decoding")
        table.add_column("position")
        for position in range(1, len(acceptance["by_position"]) + 1):
            table.add_column(str(position), justify="right")
        table.add_row("joint", *(f"{value:.3f}" for value in acceptance["by_position"]))
        table.add_row("conditional", *(f"{value:.3f}" for value in acceptance["by_position_conditional"]))
        console.print(table)
    gamma = str(report["setup"]["num_draft_tokens"])
    console.print(
        f"tokens per target call: {estimate(acceptance['mean_acceptance_length'])}, predicted "
        f"{acceptance['predicted_mean_acceptance_length'][gamma]:.3f}; accepted/proposed "
        f"{estimate(acceptance['acceptance_rate'])}",
        soft_wrap=True,
        highlight=False,
    )
    warning = prediction_warning(report)
    if warning:
        console.print(f"[bold red]BEWARE[/]: {warning}", soft_wrap=True, highlight=False)


def prediction_warning(report: dict[str, Any]) -> str | None:
    """What to say where an engine's own counter is far from what its rule should give; None where it is not."""
    found = report["acceptance"].get("prediction")
    if found is None:
        return None
    off = found["measured_over_predicted_minus_1"]
    low, high = off["ci95"]
    if not (abs(off["mean"]) > SURPRISING and (low > 0 or high < 0)):
        return None
    return (
        f"the engine's tokens per target call are {off['mean']:+.1%} [{low:+.1%}, {high:+.1%}] off what its rule "
        "should give: it runs another rule, another model or other settings than you think, or verifies wrongly"
    )


def _lossless_line(lossless: dict[str, Any]) -> str:
    if not lossless["checked"]:
        return LOSSY if lossless.get("lossy", True) else SAMPLED
    if lossless["greedy_identical"]:
        return f"lossless: greedy output identical to the target's own on {lossless['prompts_compared']} prompts"
    parted = ", ".join(
        f"{each['prompt']} at token {each['position']}"
        + (f" (logit gap {each['logit_gap']:.1e})" if "logit_gap" in each else "")
        for each in lossless["differences"]
    )
    return (
        f"greedy output differs on {len(lossless['differences'])} of {lossless['prompts_compared']} prompts: {parted}"
    )
