"""Where acceptance comes from: alpha by context length, position, turn and thinking, with a warning where it is low."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from specdistill.data.batch import Example
from specdistill.data.prompts import Prompt
from specdistill.data.thinking import thinking_tokens
from specdistill.evaluation.acceptance import PromptAcceptance
from specdistill.evaluation.config import MeasureConfig
from specdistill.evaluation.report_buckets import Bucket, Buckets, LowBucket
from specdistill.evaluation.statistics import FEWEST_UNITS, of_sums, ratio
from specdistill.evaluation.training_lengths import unlike_training
from specdistill.models.pair import FoundPair

FAR = 0.05
"""A bucket is far below the rest where the whole interval of its difference lies below minus this. Less would not
change which draft length pays; and a bound of 0 would warn of differences that are certain but small."""
_FIRST_CONTEXT, _FIRST_POSITION = 512, 16
"""Ends of the first buckets; each further one ends at twice the number."""
_RESAMPLES = 10_000
"""Bootstrap samples: more than usual, for the tails of an interval that covers more than 95 %."""
_WHERE = {
    "category": "in the category {}",
    "context": "behind {} tokens of context",
    "position": "at the tokens {} of the answers",
    "turn": "in answers to the user's turn {}",
    "thinking": "{} of thinking tags",
}


def buckets_section(
    config: MeasureConfig,
    found: FoundPair,
    prompts: Sequence[Prompt],
    answers: Sequence[Example],
    records: Sequence[PromptAcceptance],
) -> Buckets:
    """`buckets` of the report.

    Args:
        config: Its rule and draft.
        found: Tokenizers of target and draft.
        prompts: Scored prompts; further ones are passed over, as are further answers.
        answers: The target's answers to them, in the same order.
        records: The draft's scores of those answers.
    """
    prompts, answers = prompts[: len(records)], answers[: len(records)]
    alphas = [record.alpha[config.predicting_rule] for record in records]
    splits = split_tokens(prompts, answers, found.target.tokenizer)
    found_low = low_buckets(splits, alphas)
    shown = {kind: split.buckets(alphas) for kind, split in splits.items() if kind != "category"}
    return Buckets(**shown, low=found_low, unlike_training=unlike_training(config, found, answers))


@dataclass(frozen=True)
class Split:
    """One way to put every judged token in a bucket."""

    names: list[str]
    """Names of the buckets in order."""
    codes: list[np.ndarray]
    """Index of the bucket of each token, int [tokens] per answer."""

    def sums(self, alphas: Sequence[np.ndarray], bucket: int) -> tuple[np.ndarray, np.ndarray]:
        """Sum of alpha and number of tokens of each answer in one bucket, [answers] each."""
        inside = [codes == bucket for codes in self.codes]
        totals = [alpha[mask].sum() for alpha, mask in zip(alphas, inside, strict=True)]
        return np.array(totals), np.array([mask.sum() for mask in inside], dtype=float)

    def buckets(self, alphas: Sequence[np.ndarray]) -> dict[str, Bucket]:
        """The buckets that hold tokens."""
        found = {}
        for bucket, name in enumerate(self.names):
            totals, tokens = self.sums(alphas, bucket)
            if tokens.any():
                alpha = ratio(totals, tokens)
                interval, prompts = (alpha.low, alpha.high), int((tokens > 0).sum())
                found[name] = Bucket(alpha=alpha.mean, ci95=interval, tokens=int(tokens.sum()), prompts=prompts)
        return found


def split_tokens(prompts: Sequence[Prompt], answers: Sequence[Example], tokenizer) -> dict[str, Split]:
    """Kind -> split of the answers' tokens.

    Args:
        prompts: One per answer.
        answers: The judged texts.
        tokenizer: The target's tokenizer, which knows its thinking tags.
    """
    places = [np.arange(len(answer.answer_ids)) for answer in answers]
    contexts = [len(answer.prompt_ids) + place for answer, place in zip(answers, places, strict=True)]
    turns = [sum(turn.get("role") == "user" for turn in prompt.messages) for prompt in prompts]
    return {
        "category": _by_prompt([prompt.category for prompt in prompts], places),
        "context": _by_length(contexts, _FIRST_CONTEXT),
        "position": _by_length(places, _FIRST_POSITION),
        "turn": _by_prompt(turns, places),
        "thinking": _by_thinking(answers, tokenizer),
    }


def _by_prompt(values: Sequence[str] | Sequence[int], places: Sequence[np.ndarray]) -> Split:
    """One bucket per value: numbers from the lowest on, names as they come."""
    known = list(dict.fromkeys(values))
    if not any(isinstance(value, str) for value in known):
        known.sort()
    codes = [np.full(len(place), known.index(value)) for value, place in zip(values, places, strict=True)]
    return Split([str(value) for value in known], codes)


def _by_length(lengths: Sequence[np.ndarray], first: int) -> Split:
    edges = [first]
    while edges[-1] <= max((int(length.max(initial=0)) for length in lengths), default=0):
        edges.append(2 * edges[-1])
    names = [f"{low}-{high}" for low, high in zip([0, *edges], edges, strict=False)]
    return Split(names, [np.searchsorted(edges, length, side="right") for length in lengths])


def _by_thinking(answers: Sequence[Example], tokenizer) -> Split:
    texts: dict[int, str] = {}

    def piece(token: int) -> str:
        if token not in texts:
            texts[token] = tokenizer.decode([token])
        return texts[token]

    found = [thinking_tokens(answer.prompt_ids, answer.answer_ids, piece) for answer in answers]
    if not any(states is not None for states in found):
        # Every token is in no bucket.
        return Split([], [np.full(len(answer.answer_ids), -1) for answer in answers])
    states = [states or [False] * len(answer.answer_ids) for states, answer in zip(found, answers, strict=True)]
    return Split(["outside", "inside"], [np.array(inside, dtype=int) for inside in states])


def low_buckets(splits: dict[str, Split], alphas: Sequence[np.ndarray]) -> list[LowBucket]:
    """The buckets far below the rest of their split: see `FAR`.

    Only buckets are compared that have an interval, and whose rest has one. The more there are, the wider the interval
    that decides (Bonferroni), so that in all of them together chance warns at most once in twenty reports.
    """
    pairs = []
    for kind, split in splits.items():
        for bucket, name in enumerate(split.names):
            totals, tokens = split.sums(alphas, bucket)
            rest = np.array([alpha.sum() for alpha in alphas]) - totals, _lengths(split) - tokens
            if min((tokens > 0).sum(), (rest[1] > 0).sum()) >= FEWEST_UNITS:
                pairs.append((kind, name, totals, tokens, *rest))
    low = []
    for kind, name, *columns in pairs:
        deciding = of_sums(_difference, *columns, resamples=_RESAMPLES, coverage=1 - 0.05 / len(pairs))
        if deciding.high < -FAR:
            minus_rest = of_sums(_difference, *columns)
            here, elsewhere = ratio(*columns[:2]), ratio(*columns[2:])
            remark = (
                f"the draft is accepted far less {_WHERE[kind].format(name)}: alpha {here.mean:.3f} "
                f"[{here.low:.3f}, {here.high:.3f}] on {columns[1].sum():,.0f} tokens, {elsewhere.mean:.3f} elsewhere"
            )
            low.append(LowBucket(kind=kind, bucket=name, minus_rest=minus_rest, remark=remark))
    return low


def _difference(here: np.ndarray, tokens: np.ndarray, rest: np.ndarray, others: np.ndarray) -> np.ndarray:
    return here / tokens - rest / others


def _lengths(split: Split) -> np.ndarray:
    return np.array([len(codes) for codes in split.codes], dtype=float)
