"""Acceptance that trained drafts of other targets reached: a table made of this project's benchmark results.

`benchmarks/tables/known_results.py` writes known_results.json from benchmarks/results; nothing in it is typed by hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from specdistill.evaluation.answer_kind import AnswerKind
from specdistill.evaluation.economics import mean_acceptance_length_iid
from specdistill.evaluation.statistics import Estimate

SIZE_FACTOR = 4.0
"""Targets are of similar size where one has at most so many times the parameters of the other."""
CERTAINTY_APART, SUFFIX_FACTOR = 0.1, 1.25
"""Jobs are alike where the target is about as certain of its tokens, and answers repeat each other about as much."""


@dataclass(frozen=True, kw_only=True)
class KnownJob:
    """Answers of a benchmark's target, looked at as `advise` looks at yours."""

    name: str
    certainty: float
    suffix_tokens_per_call: float
    source: str
    """Result file."""

    def unlike(self, kind: AnswerKind) -> str | None:
        """Why answers are of another kind; None where they are alike."""
        apart = abs(self.certainty - kind.certainty.mean)
        ratio = kind.suffix_tokens_per_call.mean / self.suffix_tokens_per_call
        if apart > CERTAINTY_APART:
            return f"there the target was certain of a token by {self.certainty:.2f}, here by {kind.certainty.mean:.2f}"
        if not 1 / SUFFIX_FACTOR <= ratio <= SUFFIX_FACTOR:
            there, here = self.suffix_tokens_per_call, kind.suffix_tokens_per_call.mean
            return f"there suffix decoding gave {there:.2f} tokens per call, here {here:.2f}"
        return None

    def distance(self, kind: AnswerKind) -> float:
        """How far answers are from this job's; 1 is as far as any one of the two numbers may be."""
        apart = abs(self.certainty - kind.certainty.mean) / CERTAINTY_APART
        ratio = abs(math.log(kind.suffix_tokens_per_call.mean / self.suffix_tokens_per_call)) / math.log(SUFFIX_FACTOR)
        return max(apart, ratio)


@dataclass(frozen=True, kw_only=True)
class KnownPoint:
    """A draft after so much training."""

    source: str
    """Result file and entry."""
    tokens: int
    """Answer tokens that it was trained on, text that came again counted again."""
    seeds: int
    prompts: int
    """Prompts that alpha is of."""
    alpha: Mapping[str, Estimate]
    """Rule -> alpha of a token; of a parallel draft and a head the first of a round."""
    tokens_per_call: Mapping[str, Mapping[int, float]]
    """Rule -> draft length -> tokens per target call, where a bench predicted them."""
    ordinary_tokens: int = 0
    """Those of `tokens` in which a parallel draft was still the ordinary one that it was made of."""

    def calls(self, rule: str, num_draft_tokens: int, falls: bool) -> float | None:
        """Tokens per target call under a rule: as measured, or from alpha.

        Args:
            rule: How the server accepts.
            num_draft_tokens: Draft length.
            falls: Whether alpha falls with the token's place in the round, so that one alpha says too little.
        """
        known = self.tokens_per_call.get(rule, {})
        if num_draft_tokens in known or falls:
            return known.get(num_draft_tokens)
        return mean_acceptance_length_iid(self.alpha[rule].mean, num_draft_tokens) if rule in self.alpha else None


@dataclass(frozen=True, kw_only=True)
class KnownDraft:
    """A kind of draft that was trained for a benchmark's target."""

    job: str
    """Key of `KnownResults.jobs`."""
    study: str
    """Result file. Drafts of one study were trained on the same text and judged on the same prompts; those of two
    studies were not."""
    target: str
    """The target, for people."""
    target_parameters: int
    kind: str
    """`independent`, `parallel` or `head`."""
    layers: int | None
    """Layers of the draft; None for a head."""
    points: list[KnownPoint]
    """By tokens of training."""


@dataclass(frozen=True)
class KnownResults:
    """The table."""

    jobs: Mapping[str, KnownJob]
    drafts: list[KnownDraft]

    def of(self, kind: str, layers: int | None) -> list[KnownDraft]:
        """Drafts of one kind and depth."""
        return [draft for draft in self.drafts if (draft.kind, draft.layers) == (kind, layers)]

    def unlike(self, draft: KnownDraft, parameters: int, kind: AnswerKind) -> str | None:
        """Why a draft says nothing of your target; None where target and job are similar.

        Args:
            draft: One of the table's.
            parameters: Of your target.
            kind: Of its answers.
        """
        times = parameters / draft.target_parameters
        if not 1 / SIZE_FACTOR <= times <= SIZE_FACTOR:
            size = f"{times:,.0f} times as large" if times > 1 else f"{1 / times:,.0f} times smaller"
            return f"your target is {size}"
        return self.jobs[draft.job].unlike(kind)


@cache
def known_results() -> KnownResults:
    """The table that comes with the package."""
    return parse_results(json.loads(Path(__file__).with_suffix(".json").read_text()))


def parse_results(table: Mapping[str, Any]) -> KnownResults:
    """Reads a table from JSON."""
    jobs = {name: KnownJob(**job) for name, job in table["jobs"].items()}
    drafts = [
        KnownDraft(**{**draft, "points": [_point(point) for point in draft["points"]]}) for draft in table["drafts"]
    ]
    return KnownResults(jobs, drafts)


def _point(point: Mapping[str, Any]) -> KnownPoint:
    alpha = {rule: Estimate(value["mean"], *value["ci95"]) for rule, value in point["alpha"].items()}
    calls = {
        rule: {int(length): value for length, value in by_length.items()}
        for rule, by_length in point["tokens_per_call"].items()
    }
    return KnownPoint(**{**point, "alpha": alpha, "tokens_per_call": calls})
