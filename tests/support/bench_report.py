"""A bench report with round numbers, of a draft that is compared with another one."""

from __future__ import annotations

from specdistill.evaluation.economics import Economics
from specdistill.evaluation.report import (
    Comparison,
    Difference,
    GreedyDifference,
    Latency,
    Lossless,
    Report,
    Speed,
    TargetComparison,
)
from specdistill.evaluation.report_acceptance import Acceptance, CategoryScores
from specdistill.evaluation.report_samples import Sample, SampleToken
from specdistill.evaluation.report_setup import DecoderSetup, ModelFacts
from specdistill.evaluation.statistics import Estimate

RULES = ("greedy", "sampled", "argmax_draft")
ALPHA = {rule: 0.5 + place / 10 for place, rule in enumerate(RULES)}


def spread(mean):
    """An estimate with an interval of 0.02 on both sides."""
    return Estimate(mean, mean - 0.02, mean + 0.02)


def spreads(values):
    """Rule -> estimate."""
    return {rule: spread(value) for rule, value in values.items()}


def at_1(value):
    """The rules that sample, at temperature 1."""
    return spreads(dict.fromkeys(RULES[1:], value))


def category():
    """Scores of one category."""
    return CategoryScores(alpha_greedy=0.5, alpha_sampled=0.4, mean_acceptance_length=2.0, prompts=4)


SETUP = DecoderSetup(
    device="cpu", threads=1, torch="2", transformers="5", engine="specdistill", temperature=0.0, top_k=0, top_p=1.0,
    min_p=0.0, batch_size=1, max_new_tokens=24, seed=0, rule="greedy", predicting_rule="greedy", lossy=False,
    num_draft_tokens=2, prompts=8, latency_prompts=6, prompt_source="p.jsonl", lenience=1.0, draft_length="fixed",
    pack="none", packing_seconds=None,
)  # fmt: skip
ACCEPTANCE = Acceptance(
    tokens_scored=4096,
    alpha=spreads(ALPHA),
    alpha_at_temperature_1=at_1(0.33),
    by_position=[0.6, 0.4],
    by_position_conditional=[0.6, 0.66],
    mean_acceptance_length=spread(2.0),
    mean_acceptance_length_macro=2.1,
    predicted_mean_acceptance_length={1: 1.6, 2: 2.0},
    acceptance_rate=spread(0.5),
    by_category={"writing": category(), "coding": category()},
)
SPEED = Speed(tokens_per_second=12.0, time_to_first_token=0.1, time_per_output_token=0.08)
ECONOMICS = Economics(
    cost_ratio=0.2,
    verify_cost={1: 1.0, 2: 1.3, 3: 1.5},
    round_cost={1: 1.5, 2: 1.9},
    break_even_alpha=0.45,
    best_num_draft_tokens=2,
    predicted_speedup={1: 1.05, 2: 1.1},
    perfect_draft_speedup=1.6,
    verdict="pays",
    why="measured 1.10x",
)
COMPARISON = Comparison(
    draft=ModelFacts(name="before", parameters=1, vocab_size=1, dtype="float32"),
    alpha=spreads(ALPHA),
    alpha_at_temperature_1=at_1(0.22),
    predicted_mean_acceptance_length=spread(1.5),
    difference=Difference(
        **spreads(dict.fromkeys(RULES, 0.1)),
        at_temperature_1=at_1(0.11),
        predicted_mean_acceptance_length=spread(0.1),
    ),
)
OTHER_TARGET = TargetComparison(
    target=ModelFacts(name="full precision", parameters=1, vocab_size=1, dtype="float32"),
    tokens_scored=4000,
    alpha=spreads(ALPHA),
    alpha_at_temperature_1=at_1(0.44),
    predicted_mean_acceptance_length=spread(2.5),
    difference=Difference(
        **spreads(dict.fromkeys(RULES, -0.2)),
        at_temperature_1=at_1(-0.11),
        predicted_mean_acceptance_length=spread(-0.5),
    ),
    difference_on_same_answers=Difference(
        **spreads(dict.fromkeys(RULES, -0.15)),
        at_temperature_1=at_1(-0.07),
        predicted_mean_acceptance_length=spread(-0.4),
    ),
)
_WORDS = [("The", "target", None), (" quick", "draft", None), (" brown", "draft", None), (" fox", "target", " dog")]
_WORDS += [(" says", "draft", None), (" <b>", "draft", None), ("🙂", "target", "")]
SAMPLE = Sample(
    prompt_id="p1",
    category="writing",
    prompt="Continue: <script>alert(1)</script>",
    tokens=[
        SampleToken(
            text=text,
            by=by,
            p=0.6 if by == "draft" else 0.9,
            q=0.7 if by == "draft" else 0.8,
            proposed=proposed,
            proposed_p=None if proposed is None else 0.0,
            proposed_q=None if proposed is None else 0.5,
        )
        for text, by, proposed in _WORDS
    ],
    shortened=False,
)
DIFFERENT = GreedyDifference(prompt="x", position=3, logit_gap=1e-6)


def example_report() -> Report:
    """A fresh one."""
    return Report(
        target=ModelFacts(name="big<script>", parameters=134_515_008, vocab_size=49152, dtype="float32"),
        draft=ModelFacts(name="small", parameters=42_000_000, vocab_size=49152, dtype="float32", head_size=8192),
        setup=SETUP,
        acceptance=ACCEPTANCE,
        latency=Latency(baseline=SPEED, speculative=SPEED, speedup=spread(1.1), engine_efficiency=0.98),
        economics=ECONOMICS,
        lossless=Lossless(checked=True, lossy=False, greedy_identical=True, prompts_compared=6, differences=[]),
        compare=COMPARISON,
    )
