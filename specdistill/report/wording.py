"""Numbers and verdicts in words, the same for terminal, HTML page and plots."""

from __future__ import annotations

import math
from typing import NamedTuple

from specdistill.evaluation.report import LenienceRow, Report
from specdistill.evaluation.report_setup import EngineSetup, Setup
from specdistill.evaluation.statistics import Estimate
from specdistill.report.wording_names import short_names

MEANING = {
    "greedy": "argmax agreement: every engine at temperature 0",
    "sampled": "sum min(p, q): transformers, vLLM probabilistic",
    "argmax_draft": "p(argmax q): vLLM default, SGLang, llama.cpp above 0",
}
"""Rule -> formula, and the servers that accept by it."""
UNSCORED = "alpha: unknown, for the draft has another tokenizer; what follows was counted in the target's tokens"
ENDED = "alpha: unknown, for the bench ended before the answers were scored"
LOSSY = "LOSSY: the rule lenient does not keep the target's distribution"
SAMPLED = "lossless: not checked here, where the engine samples; bench --temperature 0 compares its greedy output"
UNCOMPARED = "lossless: not checked, for the bench ended before"
UNDECODED = "lossless: not checked, for decoding was not timed"


class AlphaRow(NamedTuple):
    """One line of the alpha table."""

    rule: str
    meaning: str
    alpha: Estimate
    other: Estimate | None
    """Alpha of the compared draft; None without one, like `difference`."""
    difference: Estimate | None


def alpha_rows(report: Report) -> list[AlphaRow]:
    """The rules worth showing: at temperature 0 all agree, so those that sample are shown at temperature 1 instead."""
    acceptance, compared = report.acceptance, report.compare
    rows = []
    for rule, meaning in MEANING.items():
        if rule not in acceptance.alpha:
            # Scored without the target, which this rule needs.
            continue
        at_1 = acceptance.alpha_at_temperature_1 or {}
        alpha, name, other, difference = acceptance.alpha[rule], rule, None, None
        if compared is not None:
            other, difference = compared.alpha[rule], getattr(compared.difference, rule)
        if rule in at_1:
            alpha, name = at_1[rule], f"{rule}, at temperature 1"
            if compared is not None:
                other = (compared.alpha_at_temperature_1 or {})[rule]
                difference = (compared.difference.at_temperature_1 or {})[rule]
        rows.append(AlphaRow(name, meaning, alpha, other, difference))
    return rows


class TargetRow(NamedTuple):
    """One line of the table of two targets."""

    name: str
    """The rule, or `tokens per target call`."""
    target: Estimate | float | None
    other: Estimate
    own: Estimate
    """Target minus other, each on its own answers."""
    same: Estimate
    """Target minus other, both on the target's answers."""


def target_rows(report: Report) -> list[TargetRow]:
    """The draft against both targets; empty without --compare-target."""
    acceptance, other = report.acceptance, report.compare_target
    if other is None:
        return []
    rows, own, same = [], other.difference, other.difference_on_same_answers
    for rule in other.alpha:
        if rule in (other.alpha_at_temperature_1 or {}):
            sides = ((side.alpha_at_temperature_1 or {})[rule] for side in (acceptance, other))
            paired = ((side.at_temperature_1 or {})[rule] for side in (own, same))
            rows.append(TargetRow(f"{rule}, at temperature 1", *sides, *paired))
        else:
            paired = (getattr(side, rule) for side in (own, same))
            rows.append(TargetRow(rule, acceptance.alpha[rule], other.alpha[rule], *paired))
    predicted = acceptance.predicted_mean_acceptance_length.get(report.setup.num_draft_tokens)
    lengths = (side.predicted_mean_acceptance_length for side in (other, own, same))
    return [*rows, TargetRow("tokens per target call, predicted", predicted, *lengths)]


def target_cell(value: Estimate | float | None) -> str:
    """An estimate, or a number without an interval."""
    return estimate(value) if isinstance(value, Estimate) else number(value, 3)


def target_cost(report: Report) -> str:
    """Says in a sentence how serving the target in place of the compared one changes the draft's worth."""
    other = report.compare_target
    if other is None:
        return ""
    rule = report.setup.predicting_rule
    own = getattr(other.difference, rule)
    change = f"{estimate(own, sign='+')} alpha by the rule {rule}, each target on its own answers"
    if not own.has_interval:
        what = "too few prompts to tell"
    elif own.low <= 0 <= own.high:
        what = "no difference beyond chance"
    else:
        what = "the draft is accepted less" if own.mean < 0 else "the draft is accepted more"
    names = short_names(report)
    return f"against {names.target} in place of {names.compare_target}: {what} ({change})"


class ScoreRow(NamedTuple):
    """One line of the table of scores."""

    writer: str
    prompts: int
    score: Estimate
    over: Estimate | None
    """Paired difference over the target alone on the same prompts; None for the target itself."""


def score_rows(report: Report) -> list[ScoreRow]:
    """Who wrote how good answers; empty without --scorer."""
    scores = report.score
    if scores is None:
        return []
    rows = [
        ScoreRow("target alone", scores.prompts, scores.target, None),
        ScoreRow("draft alone", scores.prompts, scores.draft, scores.draft_minus_target),
    ]
    if math.isfinite(scores.speculative.mean):
        way = f"speculative, by {report.setup.rule}"
        rows.append(ScoreRow(way, scores.speculative_prompts, scores.speculative, scores.speculative_minus_target))
    return rows


class ExpertRow(NamedTuple):
    """One line of the table of a mixture of experts."""

    tokens: int
    """Tokens in one target pass."""
    distinct: float
    predicted: float
    measured: float | None
    """None where single passes were not timed."""


def expert_rows(report: Report) -> list[ExpertRow]:
    """Costs of checking tokens, predicted by distinct experts and measured; empty for a target without experts."""
    experts = report.economics.experts
    if experts is None:
        return []
    measured = report.economics.verify_cost
    return [
        ExpertRow(tokens, distinct, experts.verify_cost[tokens], measured.get(tokens))
        for tokens, distinct in experts.distinct_experts.items()
    ]


def expert_line(report: Report) -> str | None:
    """The mixture in a sentence; None for a target without experts."""
    experts = report.economics.experts
    if experts is None:
        return None
    return (
        f"mixture of experts: a token is sent to {experts.experts_per_token:.3g} of {experts.experts} a layer and uses "
        f"{experts.active_parameters / 1e6:.1f}M of {report.target.parameters / 1e6:.1f}M parameters; experts are "
        f"{1 - experts.shared:.0%} of the weights that a plain step reads"
    )


def compared_score(report: Report) -> str | None:
    """The score of the compared draft in a line; None without one."""
    scores, other = report.score, report.compare
    if scores is None or other is None or scores.compared is None or scores.draft_minus_compared is None:
        return None
    paired = estimate(scores.draft_minus_compared, sign="+")
    name, score = short_names(report).compare, estimate(scores.compared)
    return f"score of {name} alone: {score}; the draft's minus it, paired: {paired}"


def score_line(report: Report) -> str:
    """Line on the score, which counts where the draft is a student that is served alone; empty without --scorer."""
    scores = report.score
    if scores is None:
        return ""
    return (
        "the verdict is about drafting; a model that is served alone counts by its score: "
        f"{estimate(scores.draft)} alone, {estimate(scores.target)} of the target, "
        f"{estimate(scores.draft_minus_target, sign='+')} paired"
    )


def estimate(value: Estimate, digits: int = 3, sign: str = "") -> str:
    """`0.512 [0.480, 0.541]`; `unknown` where an engine does not tell; `0.512 (too few)` without an interval."""
    if not math.isfinite(value.mean):
        return "unknown"
    if not value.has_interval:
        return f"{value.mean:{sign}.{digits}f} (too few)"
    return f"{value.mean:{sign}.{digits}f} [{value.low:{sign}.{digits}f}, {value.high:{sign}.{digits}f}]"


def number(value: float | None, digits: int = 2) -> str:
    """`0.51`; `unknown` where it could not be found."""
    return f"{value:.{digits}f}" if value is not None and math.isfinite(value) else "unknown"


def unscored(report: Report) -> str:
    """Why there is no alpha."""
    if report.partial is not None:
        return ENDED
    if report.draft.is_model:
        return UNSCORED
    return f"alpha: unknown, for {report.draft.kind} is no draft model that could be scored; what follows was counted"


def chat_lines(setup: Setup) -> list[str]:
    """How prompts were rendered, where that was set."""
    if setup.raw_prompts:
        return ["prompts: taken as they are, without the chat template (--raw-prompts)"]
    if setup.chat_template_kwargs:
        return [f"prompts: chat template arguments {setup.chat_template_kwargs}"]
    return []


def guidance_lines(setup: Setup) -> list[str]:
    """Guidance of the target, where there was any."""
    if not setup.guidance:
        return []
    return [
        f"target: guided with weight {setup.guidance:g} away from {setup.negative_prompt!r}, plain and with the draft"
    ]


def lenience_name(row: LenienceRow) -> str:
    """`0.7`; `1 (exact)` for the rule that keeps the target's distribution."""
    return "1 (exact)" if row.lenience == 1 else f"{row.lenience:g}"


def training_lines(report: Report) -> list[str]:
    """Drafts whose training prompts make these numbers say less."""
    return [f"BEWARE: {entry.remark}" for entry in report.training_prompts or ()]


def unchecked_line(report: Report) -> str:
    """Why greedy output was not compared with the target's own."""
    if report.lossless.lossy:
        return LOSSY
    if isinstance(report.setup, EngineSetup) and report.setup.temperature > 0:
        return SAMPLED
    return UNDECODED if report.partial is None else UNCOMPARED


def lossless_line(report: Report) -> str:
    """Whether greedy output stayed the target's own, and where it did not."""
    lossless = report.lossless
    if not lossless.checked:
        return unchecked_line(report)
    if lossless.greedy_identical:
        return f"lossless: greedy output identical to the target's own on {lossless.prompts_compared} prompts"
    places = ", ".join(
        f"{difference.prompt} at token {difference.position}"
        + ("" if difference.logit_gap is None else f" (logit gap {difference.logit_gap:.1e})")
        for difference in lossless.differences
    )
    return f"greedy output differs on {len(lossless.differences)} of {lossless.prompts_compared} prompts: {places}"
