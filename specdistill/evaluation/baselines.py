"""Drafting without a model, predicted on the answers that the draft is scored on.

Each way is walked over the answers (`copying_walk`) at every draft length; its best is compared with the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from specdistill.data.batch import Example
from specdistill.decoding.costs import Costs
from specdistill.decoding.draft_kinds import DraftKind
from specdistill.decoding.free_drafts import FreeDraft, FreeThenModel
from specdistill.decoding.lookup import LlamaCppNgram, NewLookup, TransformersNgram, VllmNgram
from specdistill.decoding.parallel_draft import draft_of
from specdistill.decoding.suffix import SuffixMemory, SuffixSettings
from specdistill.evaluation.baseline_settings import LLAMA_CPP_SIZE, BaselineSettings
from specdistill.evaluation.copying_walk import Copies, Walk, copies_of, walk_copies
from specdistill.evaluation.latency import TimedRun, speedup_of
from specdistill.evaluation.report_baselines import Baseline
from specdistill.evaluation.statistics import ratio
from specdistill.models import LanguageModel

WITH_DRAFT = "+draft"
"""Ending of the names of those that ask the draft where nothing is found."""
UNSERVED = frozenset({f"suffix{WITH_DRAFT}"})
"""Ways that no engine has: they are predicted, and `best` does not time them."""


@dataclass(frozen=True)
class Way:
    """One way of copying."""

    settings: dict[str, int | float]
    begin: Callable[[], NewLookup]
    """Starts afresh, as a server does."""
    asks_draft: bool = False
    longest: int | None = None
    """The only draft length that its engine has; None where it is a setting."""


def ways_of(settings: BaselineSettings, stop_ids: frozenset[int]) -> dict[str, Way]:
    """Every way of copying, by its name in the report.

    Args:
        settings: Sizes of vLLM's n-gram.
        stop_ids: Ids that end an answer, which transformers does not copy.
    """
    suffix = SuffixSettings()
    sizes = {"min": settings.lookup_min, "max": settings.lookup_max}
    tree = {"depth": suffix.depth, "factor": suffix.factor, "min_probability": suffix.least_probability}
    alone = {
        "ngram": Way(dict(sizes), lambda: partial(VllmNgram, settings.lookup_min, settings.lookup_max)),
        "ngram_transformers": Way({"min": 1, "max": 2}, lambda: partial(TransformersNgram, 2, stop_ids)),
        "ngram_llama_cpp": Way(
            {"size_n": LLAMA_CPP_SIZE, "size_m": 48}, lambda: partial(LlamaCppNgram, LLAMA_CPP_SIZE, 48), longest=48
        ),
        "suffix": Way(dict(tree), lambda: SuffixMemory(suffix)),
    }
    both = {f"{name}{WITH_DRAFT}": Way(alone[name].settings, alone[name].begin, True) for name in ("ngram", "suffix")}
    return alone | both


def draft_kind(way: Way, target: LanguageModel, draft: LanguageModel) -> DraftKind:
    """The way as the decoder takes it; it remembers nothing yet."""
    free = FreeDraft(way.begin(), target.vocab_size)
    return FreeThenModel(free, draft_of(draft)) if way.asks_draft else free


def predict(
    ways: Mapping[str, Way],
    answers: Sequence[Example],
    chances: Sequence[np.ndarray],
    lengths: Sequence[int],
    max_new_tokens: int,
    costs: Costs | None,
) -> dict[str, Baseline]:
    """Predicts every way at every draft length, and takes its best.

    Args:
        ways: What to predict.
        answers: The target's own answers, in the order in which a server would see them.
        chances: For each answer, `PromptAcceptance.token_acceptance` under the predicting rule.
        lengths: Draft lengths to compare.
        max_new_tokens: Limit of the answers.
        costs: Of single steps; None compares tokens per target call instead.

    Returns:
        Name -> prediction. Nothing in it is timed.
    """
    found: dict[Callable[[], NewLookup], list[dict[int, Copies]]] = {}
    baselines = {}
    for name, way in ways.items():
        asked = lengths if way.longest is None else [way.longest]
        # A way that asks the draft copies what the same way without it does.
        if way.begin not in found:
            lookup = way.begin()
            found[way.begin] = [copies_of(answer, lookup, asked, max_new_tokens) for answer in answers]
        baselines[name] = _best(way, found[way.begin], chances, asked, costs)
    return baselines


def _best(
    way: Way,
    copies: Sequence[dict[int, Copies]],
    chances: Sequence[np.ndarray],
    lengths: Sequence[int],
    costs: Costs | None,
) -> Baseline:
    found: dict[int, Baseline] = {}
    for length in lengths:
        walks = [
            walk_copies(answer[length], len(chance), length, costs, chance if way.asks_draft else None)
            for answer, chance in zip(copies, chances, strict=True)
        ]
        found[length] = _baseline(way, walks, length)
    by_length = {length: baseline.mean_acceptance_length.mean for length, baseline in found.items()}
    best = max(found, key=lambda length: (found[length].predicted_speedup or 0.0, by_length[length], -length))
    return replace(found[best], predicted_mean_acceptance_length=by_length)


def _baseline(way: Way, walks: Sequence[Walk], length: int) -> Baseline:
    tokens, rounds = [walk.tokens for walk in walks], [walk.rounds for walk in walks]
    cost = sum(walk.cost for walk in walks)
    return Baseline(
        settings=way.settings | {"num_draft_tokens": length},
        mean_acceptance_length=ratio(tokens, rounds),
        proposed_share=sum(walk.proposing for walk in walks) / sum(rounds) if sum(rounds) else 0.0,
        predicted_speedup=float(sum(tokens) / cost) if np.isfinite(cost) and cost else None,
    )


@dataclass(frozen=True)
class Beside:
    """Everything that is free beside a draft: how it copies, and what is predicted of it."""

    ways: Mapping[str, Way]
    predicted: Mapping[str, Baseline]

    def to_time(self, settings: BaselineSettings) -> dict[str, tuple[Way, Baseline]]:
        """Ways for the timed run: of those that an engine has the fastest with and without a draft, or all."""
        if settings.baselines == "all":
            chosen = list(self.predicted)
        elif settings.baselines == "best":
            chosen = [name for asks in (False, True) for name in self._fastest(asks)]
        else:
            chosen = []
        return {name: (self.ways[name], self.predicted[name]) for name in chosen}

    def _fastest(self, asks_draft: bool) -> list[str]:
        speeds = {
            name: baseline.predicted_speedup
            for name, baseline in self.predicted.items()
            if baseline.predicted_speedup and name not in UNSERVED and self.ways[name].asks_draft == asks_draft
        }
        return [max(speeds, key=lambda name: speeds[name])] if speeds else []

    def timed(self, runs: Mapping[str, Sequence[TimedRun]], drafted: Sequence[TimedRun]) -> dict[str, Baseline]:
        """`baselines` of the report.

        Args:
            runs: Name -> timed batches.
            drafted: The same batches with the draft.
        """
        slow = [run.speculative for run in drafted]
        return dict(self.predicted) | {
            name: replace(
                self.predicted[name],
                speedup=speedup_of([run.plain for run in batches], [run.speculative for run in batches]),
                over_draft=speedup_of(slow, [run.speculative for run in batches]),
            )
            for name, batches in runs.items()
            if batches
        }


def beside_draft(
    settings: BaselineSettings,
    stop_ids: frozenset[int],
    answers: Sequence[Example],
    chances: Sequence[np.ndarray],
    longest: int,
    max_new_tokens: int,
    costs: Costs | None,
) -> Beside | None:
    """Predicts what is free; None where the settings leave it out.

    Args:
        settings: Which, and sizes.
        stop_ids: Ids that end an answer.
        answers: The target's own answers that were scored, in order.
        chances: For each of them, `PromptAcceptance.token_acceptance` under the predicting rule.
        longest: Longest draft length to compare.
        max_new_tokens: Limit of the answers.
        costs: Of single steps; None compares tokens per target call.
    """
    if settings.baselines == "none":
        return None
    ways = ways_of(settings, stop_ids)
    return Beside(ways, predict(ways, answers, chances, range(1, longest + 1), max_new_tokens, costs))
