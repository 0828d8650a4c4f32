"""Tables of `bench`, on stdout."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from specdistill.evaluation.report import Latency, LenienceRow, Report
from specdistill.evaluation.report_acceptance import Acceptance
from specdistill.evaluation.report_setup import EngineSetup, Setup
from specdistill.report.console import plain_console
from specdistill.report.samples import print_samples
from specdistill.report.terminal_buckets import print_buckets
from specdistill.report.terminal_leaderboard import print_leaderboard
from specdistill.report.terminal_load import print_load
from specdistill.report.wide_table import print_wide
from specdistill.report.wording import (
    alpha_rows,
    chat_lines,
    compared_score,
    estimate,
    expert_line,
    expert_rows,
    guidance_lines,
    lenience_name,
    lossless_line,
    number,
    score_line,
    score_rows,
    target_cell,
    target_cost,
    target_rows,
    training_lines,
    unscored,
)
from specdistill.report.wording_baselines import baseline_rows, draft_words, overlap_line
from specdistill.report.wording_buckets import category_alpha
from specdistill.report.wording_leaderboard import others_remark
from specdistill.report.wording_names import short_names
from specdistill.report.wording_parallel import break_even, depth_lines, first_guess_line, one_by_one_lines
from specdistill.report.wording_verdict import tokens, verdict
from specdistill.report.wording_warnings import cut_lines, length_warnings, prediction_warning, speed_warning


def bench_tables(report: Report, show: int = 0) -> None:
    """Prints the bench report.

    Args:
        report: The report.
        show: Sample answers to print token by token.
    """
    console = plain_console()
    _headline(console, report)
    if report.acceptance.alpha:
        _alpha_table(console, report)
    else:
        console.print(unscored(report))
    _targets(console, report)
    _positions(console, report)
    if report.acceptance.by_category:
        _categories(console, report.acceptance, report.setup)
    print_buckets(console, report)
    if report.score is not None:
        _scores(console, report, report.score.scorer)
    if report.latency.is_timed:
        _speed(console, report.latency, report.setup)
    _experts(console, report)
    if report.lenience_sweep:
        _lenience(console, report.lenience_sweep)
    print_load(console, report)
    print_leaderboard(console, report)
    if show and report.samples:
        print_samples(console, report.samples[:show])
    elif show:
        console.print("no sample answers: decoding was not timed")
    for fact in [*_costs(report), lossless_line(report)]:
        console.print(fact, soft_wrap=True)
    _baselines(console, report)
    _beware(console, speed_warning(report))
    economics = report.economics
    console.print(Text.assemble((f"verdict: {economics.verdict}", "bold"), f" - {economics.why}"), soft_wrap=True)
    if report.recommendation is not None:
        found = verdict(report)
        console.print(Text.assemble((found.headline, "bold"), f": {found.why}."), soft_wrap=True)
    if line := score_line(report):
        console.print(line, soft_wrap=True)


def _headline(console: Console, report: Report) -> None:
    target, setup = report.target, report.setup
    engine = ""
    if isinstance(setup, EngineSetup):
        engine = f"   in {setup.engine_version}, which accepts by {setup.rule}"
    console.print(
        f"target {target.name} ({target.parameters / 1e6:.1f}M)   "
        f"{draft_words(report)}   "
        f"{setup.device}, {setup.threads} threads{engine}",
        soft_wrap=True,
    )
    for remark in (*chat_lines(setup), *one_by_one_lines(setup), *guidance_lines(setup), *training_lines(report)):
        console.print(remark, soft_wrap=True)
    partial = report.partial
    if partial is not None:
        console.print(
            Text.assemble(
                ("INCOMPLETE", "bold"),
                f": {partial.prompts_done} of {partial.prompts_asked} prompts; {partial.why}",
            ),
            soft_wrap=True,
        )


def _alpha_table(console: Console, report: Report) -> None:
    table = Table(title=f"alpha on {report.acceptance.tokens_scored:,} tokens that the target wrote")
    table.add_column("rule")
    table.add_column("alpha [95 %]", justify="right")
    if report.compare is not None:
        table.add_column(short_names(report).compare or "", justify="right")
        table.add_column("paired difference", justify="right")
    table.add_column("means")
    for row in alpha_rows(report):
        cells = [row.rule, estimate(row.alpha)]
        if row.other is not None and row.difference is not None:
            cells += [estimate(row.other), estimate(row.difference, sign="+")]
        table.add_row(*cells, row.meaning)
    console.print(table)
    if remark := others_remark(report):
        console.print(remark, soft_wrap=True)
    line = first_guess_line(report)
    if line is not None:
        console.print(line, soft_wrap=True)


def _targets(console: Console, report: Report) -> None:
    rows, other = target_rows(report), report.compare_target
    if other is None:
        return
    name = short_names(report).compare_target
    table = Table(title=f"the same draft against {name} (--compare-target), and target minus it, paired")
    for name in ("rule", "target", "compared", "minus it, own answers", "on the target's"):
        table.add_column(name, justify="left" if name == "rule" else "right")
    for row in rows:
        paired = (estimate(difference, sign="+") for difference in (row.own, row.same))
        table.add_row(row.name, target_cell(row.target), estimate(row.other), *paired)
    console.print(table)
    console.print(target_cost(report), soft_wrap=True)


def _positions(console: Console, report: Report) -> None:
    acceptance = report.acceptance
    if acceptance.by_position:
        both = {"joint": acceptance.by_position, "conditional": acceptance.by_position_conditional}
        print_wide(
            console,
            "acceptance by position in the draft, real decoding",
            "position",
            [str(position) for position in range(1, len(acceptance.by_position) + 1)],
            {name: ["-" if math.isnan(value) else f"{value:.3f}" for value in values] for name, values in both.items()},
        )
    for line in depth_lines(report):
        console.print(line, soft_wrap=True)
    predicted = acceptance.predicted_mean_acceptance_length.get(report.setup.num_draft_tokens)
    console.print(
        f"tokens per target call: {estimate(acceptance.mean_acceptance_length)}, predicted {number(predicted, 3)} with "
        f"{tokens(report.setup.num_draft_tokens, 'draft')}; accepted/proposed {estimate(acceptance.acceptance_rate)}",
        soft_wrap=True,
    )
    for warning in (prediction_warning(report), *length_warnings(report)):
        _beware(console, warning)


def _beware(console: Console, warning: str | None) -> None:
    if warning:
        console.print(Text.assemble(("BEWARE", "bold red"), f": {warning}"), soft_wrap=True)


def _categories(console: Console, acceptance: Acceptance, setup: Setup) -> None:
    table, rule = Table(title="by category"), setup.predicting_rule
    predicted = f"tokens per call, predicted with {setup.num_draft_tokens}"
    for name in ("category", "prompts", f"alpha {rule}", predicted):
        table.add_column(name, justify="left" if name == "category" else "right")
    for name, scores in acceptance.by_category.items():
        numbers = category_alpha(scores, rule), f"{scores.mean_acceptance_length:.3f}"
        table.add_row(name, str(scores.prompts), *numbers)
    console.print(table)


def _scores(console: Console, report: Report, scorer: str) -> None:
    table = Table(title=f"score of the finished answers ({scorer})")
    for name in ("answers of", "prompts", "score [95 %]", "over the target, paired"):
        table.add_column(name, justify="left" if name == "answers of" else "right")
    for row in score_rows(report):
        over = "" if row.over is None else estimate(row.over, sign="+")
        table.add_row(row.writer, str(row.prompts), estimate(row.score), over)
    console.print(table)
    for line in (compared_score(report), *cut_lines(report)):
        if line is not None:
            console.print(line, soft_wrap=True)


def _speed(console: Console, latency: Latency, setup: Setup) -> None:
    table = Table(title=f"speed, batch {setup.batch_size}, {setup.latency_prompts} prompts, interleaved")
    for name in ("", "tokens/s", "first token, s", "per token, s"):
        table.add_column(name, justify="left" if not name else "right")
    for name, speed in (("plain target", latency.baseline), ("speculative", latency.speculative)):
        table.add_row(
            name,
            f"{speed.tokens_per_second:.2f}",
            f"{speed.time_to_first_token:.3f}",
            f"{speed.time_per_output_token:.4f}",
        )
    console.print(table)


def _experts(console: Console, report: Report) -> None:
    """Costs of checking tokens where the target is a mixture of experts, predicted and measured."""
    line, rows = expert_line(report), expert_rows(report)
    if line is None:
        return
    console.print(line, soft_wrap=True)
    title = f"one target pass, batch {report.setup.batch_size}, in plain target steps"
    cells = {
        "distinct experts": [f"{row.distinct:.1f}" for row in rows],
        "predicted": [number(row.predicted) for row in rows],
    }
    if any(row.measured is not None for row in rows):
        cells["measured"] = [number(row.measured) for row in rows]
    print_wide(console, title, "tokens", [str(row.tokens) for row in rows], cells)


def _baselines(console: Console, report: Report) -> None:
    rows = baseline_rows(report)
    if rows:
        table = Table(title="the draft and ways to draft without a model, on the target's own answers")
        for name in ("way", "tokens", "tokens/call", "proposed", "predicted", "measured [95 %]"):
            table.add_column(name, justify="left" if name == "way" else "right")
        for row in rows:
            table.add_row(row.meaning, *row[2:])
        console.print(table)
        console.print(overlap_line(report) or "", soft_wrap=True)


def _lenience(console: Console, rows: Sequence[LenienceRow]) -> None:
    """Means, and the interval of the speed-up; the other intervals are in the JSON and on the page."""
    table = Table(title="LOSSY: rule lenient, all rows in turn with the plain target")
    scored = any(row.score is not None for row in rows)
    for name in ("lenience", "speed-up", "tokens/call", "accepted", "changed", *(["score"] if scored else [])):
        table.add_column(name, justify="left" if name == "lenience" else "right")
    for row in rows:
        means = [
            row.mean_acceptance_length,
            row.acceptance_rate,
            row.changed_tokens,
            *([row.score] if row.score else []),
        ]
        table.add_row(lenience_name(row), estimate(row.speedup, 2), *(number(value.mean, 3) for value in means))
    console.print(table)


def _costs(report: Report) -> list[str]:
    """Speed-up and costs, a line each; of a real engine only whole rounds are known."""
    economics, latency, length = report.economics, report.latency, report.setup.num_draft_tokens
    if not economics.predicted_speedup:
        return []
    predicted, drafts = economics.predicted_speedup[length], tokens(length, "draft")
    perfect = f"a perfect draft {number(economics.perfect_draft_speedup)}"
    if economics.perfect_num_draft_tokens is not None:
        perfect += f" with {tokens(economics.perfect_num_draft_tokens)}"
    needed = f"break-even alpha {break_even(report)}"
    measured = f"speed-up, measured: {estimate(latency.speedup, 2)} with {drafts}"
    if economics.cost_ratio is None:
        return [
            measured,
            f"speed-up, predicted: {number(predicted)} with {drafts}; {perfect}",
            f"a round of {drafts} and their check takes {economics.round_cost[length]:.2f} target steps; {needed}",
        ]
    drafting = f"draft step {economics.cost_ratio:.3f}"
    if economics.draft_pass_cost is not None:
        drafting = f"guessing {tokens(length)} in one pass {economics.draft_pass_cost[length]:.3f}"
    best = economics.best_num_draft_tokens
    facts = [
        f"speed-up, predicted: {predicted:.2f} with {drafts}; best {economics.predicted_speedup[best]:.2f} with "
        f"{tokens(best)}; {perfect}",
        f"costs in target steps: {drafting}, checking {length + 1} tokens "
        f"{economics.verify_cost[length + 1]:.2f}; {needed}",
    ]
    if not latency.is_timed:
        return facts
    return [measured, *facts, f"time inside the models: {latency.engine_efficiency:.3f} of the decoding time"]
