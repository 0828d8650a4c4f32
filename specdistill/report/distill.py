"""Tables of `train-draft`, `generate` and `annotate`, on stdout."""

from __future__ import annotations

from rich.table import Table

from specdistill.evaluation.cut_answers import cut_line
from specdistill.evaluation.summaries import (
    AnnotateSummary,
    GenerateSummary,
    RightAnswers,
    TrainSummary,
)
from specdistill.report.console import plain_console
from specdistill.report.wording import estimate


def training_table(summary: TrainSummary) -> None:
    """Prints the summary that `train_draft` returned."""
    console = plain_console()
    alpha = summary.measure == "alpha"
    table = Table(title=f"held-out {summary.measure}, {summary.heldout_prompts} prompts that training never saw")
    for name in ("rule" if alpha else "of", "before", "after", "paired difference [95 %]"):
        table.add_column(name, justify="left" if name in ("rule", "of") else "right")
    for name, gain in summary.gain.items():
        before, after = summary.before[name], summary.after[name]
        table.add_row(summary.row_label(name) or name, f"{before:.3f}", f"{after:.3f}", estimate(gain, sign="+"))
    console.print(table)
    if summary.caveat is not None:
        console.print(summary.caveat, soft_wrap=True)
    if summary.right_answers is not None:
        shown = ", ".join(f"{label} {value}" for label, value in _right_answers(summary.right_answers))
        console.print(f"of {summary.right_answers.answers:,} sampled answers: {shown}", soft_wrap=True)
    if summary.verdict is not None:
        console.print(summary.verdict, soft_wrap=True)
    if summary.kept_step == 0 and summary.steps:
        console.print("Training found nothing better than the draft it started from; that draft was written unchanged.")
    for warning in (summary.unlearned, summary.forgotten, summary.disagreement):
        if warning is not None:
            console.print(f"warning: {warning}", soft_wrap=True)
    kept = f"step {summary.kept_step} of {summary.steps} kept: {summary.why}"
    console.print(f"draft: {summary.output} ({kept})", soft_wrap=True)


def generation_table(summary: GenerateSummary) -> None:
    """Prints the summary that `generate` returned."""
    console = plain_console()
    generators = summary.generators
    table = Table(title=f"answers in {summary.output}, sampled at temperature {summary.temperature:g}")
    table.add_column("")
    for role, generator in generators.items():
        table.add_column(f"{role}: {generator.name}", justify="right")
    unit = {None: "sampling FLOPs", "compute": "sampling FLOPs", "cost": "price"}[summary.match]
    lines = {
        "prompts": ("prompts", "{:,}"),
        "rollouts": ("answers", "{:,}"),
        "tokens": ("tokens", "{:,}"),
        "budget": (unit, "{:.3g}"),
        "cut": (f"answers cut at {summary.max_new_tokens} tokens", "{:,}"),
        "distinct_per_prompt": ("different answers per prompt", "{:.2f}"),
        "target_log_likelihood": ("target's mean log-likelihood per token", "{:.3f}"),
        "mean_score": ("mean score", "{:.3f}"),
    }
    for key, (label, form) in lines.items():
        if getattr(generators["target"], key) is not None:
            table.add_row(label, *(form.format(getattr(generator, key)) for generator in generators.values()))
    counts = [generator.right_answers for generator in generators.values() if generator.right_answers is not None]
    for row in zip(*(_right_answers(one) for one in counts), strict=True):
        table.add_row(row[0][0], *(value for _, value in row))
    console.print(table)
    if summary.budget_used is not None:
        console.print(_budget_line(summary.budget_used, summary.temperature), soft_wrap=True)
    for role, generator in generators.items():
        if generator.mean_score is not None:
            line = cut_line(role, generator.cut, generator.rollouts, summary.max_new_tokens)
            # The table has the number; a line of its own says that it matters.
            if line.startswith("warning"):
                console.print(line, soft_wrap=True)
        if generator.example is not None:
            console.print(f"an answer of {role}: {generator.example}", soft_wrap=True)


def _budget_line(used: float, temperature: float) -> str:
    """The share of the target's budget that the other model used, and how to come nearer to it."""
    remedy = "raise --rollouts-per-prompt to come nearer"
    if temperature == 0:
        remedy = "set --temperature above 0 to let it answer more often"
    return f"other used {used:.0%} of the target's budget, in whole answers to every prompt; {remedy}"


def _right_answers(counts: RightAnswers) -> list[tuple[str, str]]:
    """(label, value) of each line about right answers."""
    lines = [
        ("right answers", f"{counts.right:,}"),
        ("prompts with a right answer (coverage)", f"{counts.coverage:.1%}"),
        ("different right answers per prompt", f"{counts.distinct_right_per_prompt:.2f}"),
    ]
    if counts.false_positives is not None:
        share = "" if counts.false_positive_share is None else f" ({counts.false_positive_share:.1%})"
        lines.append(("right answers that --strict-scorer rejects", f"{counts.false_positives:,}{share}"))
    return lines


def annotation_lines(summary: AnnotateSummary) -> None:
    """Prints the summary that `annotate` returned."""
    print(
        f"{summary.answers:,} answers, {summary.tokens:,} tokens labelled in {summary.output}\n"
        f"{summary.labels_per_token:.1f} labels and {summary.bytes_per_token:.0f} bytes per token "
        f"(at most {summary.planned_bytes_per_token:.0f} were planned)"
    )
    if summary.feature_bytes:
        print(f"{summary.feature_bytes / 1e6:.1f} MB of states for a head, with the target's embedding and output head")
