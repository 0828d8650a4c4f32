"""The report as one HTML page that needs no network: styles and plots are inside it."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from specdistill.evaluation.report import Report
from specdistill.evaluation.report_setup import EngineSetup
from specdistill.evaluation.to_json import to_json
from specdistill.report.plots import all_plots
from specdistill.report.wording import (
    LOSSY,
    SAMPLED,
    alpha_rows,
    compared_score,
    estimate,
    expert_line,
    expert_rows,
    guidance_lines,
    lenience_name,
    number,
    prediction_warning,
    score_rows,
    target_cell,
    target_cost,
    target_rows,
)
from specdistill.report.wording_baselines import baseline_rows, unscored_line


def html_report(report: Report) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("specdistill", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["estimate"] = estimate
    environment.filters["number"] = number
    environment.filters["target_cell"] = target_cell
    environment.filters["lenience_name"] = lenience_name
    template = environment.get_template("bench.html.jinja")
    return template.render(
        report=report,
        in_engine=isinstance(report.setup, EngineSetup),
        settings=to_json(report.setup),
        plots=all_plots(report),
        alphas=alpha_rows(report),
        scores=score_rows(report),
        compared_score=compared_score(report),
        expert_line=expert_line(report),
        experts=expert_rows(report),
        target_rows=target_rows(report),
        target_cost=target_cost(report),
        lossy=LOSSY,
        sampled=SAMPLED,
        unscored=unscored_line(report),
        baselines=baseline_rows(report),
        warning=prediction_warning(report),
        guidance=guidance_lines(report.setup),
    )
