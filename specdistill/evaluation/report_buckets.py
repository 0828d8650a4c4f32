"""The bench report's `buckets`; see `report`."""

from __future__ import annotations

from dataclasses import dataclass

from specdistill.evaluation.statistics import Estimate


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Judged tokens that have something in common."""

    alpha: float
    """Mean alpha under `setup.predicting_rule`."""
    ci95: tuple[float, float]
    """Its 95 % interval over prompts; null where fewer than 6 prompts have such tokens."""
    tokens: int
    """Number of tokens."""
    prompts: int
    """Number of prompts whose answers have such tokens."""


@dataclass(frozen=True, kw_only=True)
class LowBucket:
    """A bucket in which the draft is accepted far less often than elsewhere."""

    kind: str
    """`category`, `context`, `position`, `turn` or `thinking`."""
    bucket: str
    """Its key."""
    minus_rest: Estimate
    """Its alpha minus that of all other tokens, prompts resampled together."""
    remark: str
    """The same in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """Where acceptance comes from: the tokens of `acceptance.tokens_scored`, split in several ways. Every split holds
    all of them, so one cause may show in several splits."""

    context: dict[str, Bucket]
    """Tokens before the judged token, prompt included, as in `0-512`, which holds 0 to 511 -> its bucket."""
    position: dict[str, Bucket]
    """Tokens of the answer before the judged one, as in `0-16` -> its bucket. Late positions are those of long answers
    only."""
    turn: dict[str, Bucket]
    """Number of user turns before the answer -> its bucket."""
    thinking: dict[str, Bucket]
    """`inside` and `outside` of thinking tags -> its bucket; empty where no answer has any. A closing tag is inside."""
    low: list[LowBucket]
    """Buckets far below the rest: with a confidence of 95 % over all buckets together, by more than 0.05."""
    unlike_training: list[str]
    """Sentences on the chat template and the lengths of texts, where they differ from those of the draft's training,
    by the specdistill.yaml in its directory."""
