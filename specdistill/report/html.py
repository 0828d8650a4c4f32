"""The report as one HTML page that needs no network: styles and plots are inside it."""

from __future__ import annotations

import math
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from specdistill.evaluation.report import Report
from specdistill.evaluation.report_setup import EngineSetup, ModelFacts
from specdistill.evaluation.statistics import Estimate
from specdistill.evaluation.to_json import to_json
from specdistill.report.plots import all_plots
from specdistill.report.wording import (
    alpha_rows,
    compared_score,
    estimate,
    expert_line,
    expert_rows,
    guidance_lines,
    lenience_name,
    number,
    score_line,
    score_rows,
    target_cell,
    target_cost,
    target_rows,
    unchecked_line,
    unscored,
)
from specdistill.report.wording_baselines import baseline_rows, overlap_line
from specdistill.report.wording_buckets import bucket_rows, bucket_warnings
from specdistill.report.wording_leaderboard import leader, leaderboard_remarks, leaderboard_table, others_remark
from specdistill.report.wording_load import HEADS, load_lines, load_remarks, vllm_setting
from specdistill.report.wording_names import short_names
from specdistill.report.wording_parallel import (
    break_even,
    depth_lines,
    drafting_cost,
    first_guess_line,
    one_by_one_lines,
)
from specdistill.report.wording_samples import (
    is_blank,
    rejected_text,
    rejected_title,
    sample_counts,
    shown,
    token_title,
    visible,
)
from specdistill.report.wording_verdict import tokens, verdict
from specdistill.report.wording_warnings import cut_lines, length_warnings, prediction_warning, speed_warning


def html_report(report: Report) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("specdistill", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    filters = (estimate, number, target_cell, lenience_name, shown, rejected_text, rejected_title, token_title, tokens)
    environment.filters |= {function.__name__: function for function in (*filters, sample_counts, is_blank, visible)}
    template = environment.get_template("bench.html.jinja")
    return template.render(
        report=report,
        names=short_names(report),
        verdict=verdict(report),
        cautions=_cautions(report),
        left_out=_left_out(report),
        facts=_facts(report),
        models=_models(report),
        in_engine=isinstance(report.setup, EngineSetup),
        settings=to_json(report.setup),
        plots=all_plots(report),
        alphas=alpha_rows(report),
        first_guess=first_guess_line(report),
        scores=score_rows(report),
        compared_score=compared_score(report),
        score_line=score_line(report),
        cut_lines=cut_lines(report),
        expert_line=expert_line(report),
        break_even=break_even(report),
        drafting_cost=drafting_cost(report),
        depth_lines=depth_lines(report),
        one_by_one=one_by_one_lines(report.setup),
        experts=expert_rows(report),
        target_rows=target_rows(report),
        target_cost=target_cost(report),
        unchecked=unchecked_line(report),
        unscored=unscored(report),
        guidance=guidance_lines(report.setup),
        baselines=baseline_rows(report),
        overlap=overlap_line(report),
        leaderboard=leaderboard_table(report),
        others=others_remark(report),
        leaderboard_remarks=leaderboard_remarks(report),
        leader=leader(report.leaderboard, report.setup.num_draft_tokens) if report.leaderboard else "",
        load_heads=HEADS,
        load_lines=load_lines(report),
        load_remarks=load_remarks(report),
        vllm_setting=vllm_setting(report),
        bucket_rows=bucket_rows(report),
        bucket_warnings=bucket_warnings(report),
    )


def _cautions(report: Report) -> list[str]:
    remarks = [
        prediction_warning(report),
        speed_warning(report),
        *length_warnings(report),
        *(entry.remark for entry in report.training_prompts or ()),
    ]
    return [remark for remark in remarks if remark is not None]


def _left_out(report: Report) -> list[str]:
    """Further parts that failed; the first one is the reason already."""
    partial = report.partial
    found = {} if partial is None else partial.left_out or {}
    return [f"Left out too: {why}" for why in found.values() if partial is None or why != partial.why]


class _Fact(NamedTuple):
    name: str
    mean: str
    interval: str
    remark: str


def _facts(report: Report) -> list[_Fact]:
    """The numbers that everyone asks for."""
    acceptance, setup, facts = report.acceptance, report.setup, []
    rule, tau = setup.predicting_rule, acceptance.mean_acceptance_length
    if report.latency.is_timed:
        remark = f"{tokens(setup.num_draft_tokens, 'draft')}, batch {setup.batch_size}"
        facts.append(_fact("the draft's speed-up", report.latency.speedup, remark, "x"))
    if math.isfinite(tau.mean):
        facts.append(_fact("tokens per target call", tau, "1 without a draft"))
        facts.append(_fact("accepted of the proposed", acceptance.acceptance_rate, "draft tokens"))
    if rule in acceptance.alpha:
        facts.append(
            _fact(f"alpha, rule {rule}", acceptance.alpha[rule], f"{acceptance.tokens_scored:,} tokens scored")
        )
    return facts


def _fact(name: str, value: Estimate, remark: str, unit: str = "") -> _Fact:
    mean, _, interval = estimate(value, 2).partition(" ")
    return _Fact(name, mean + unit, interval, remark)


def _models(report: Report) -> list[tuple[str, ModelFacts]]:
    """(role, model) of every model."""
    models = [("target", report.target), ("draft", report.draft)]
    if report.compare is not None:
        models.append(("compared draft", report.compare.draft))
    if report.compare_target is not None:
        models.append(("compared target", report.compare_target.target))
    return models
