"""Copying methods of real engines, simulated on the plain engine's answers: what their counters should say."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from specdistill.data.batch import Example
from specdistill.decoding.lookup import LlamaCppNgram, NewLookup, TransformersNgram, VllmNgram
from specdistill.decoding.suffix import SuffixMemory
from specdistill.evaluation.copying_walk import walk
from specdistill.serving import draft_flags
from specdistill.serving.engine_table import Drafting


def lookup_of(engine: str, asked: Drafting, stop_ids: frozenset[int]) -> NewLookup | None:
    """The engine's own way of copying; None for methods that are not simulated.

    Args:
        engine: Value of --engine.
        asked: Method and settings.
        stop_ids: Ids that end an answer.
    """
    asked = draft_flags.fitted(engine, asked)
    if asked.method == "suffix":
        return SuffixMemory()
    if asked.method == "ngram" and engine == "vllm":
        return partial(VllmNgram, asked.lookup_min, asked.lookup_max)
    if asked.method == "ngram" and engine == "transformers":
        return partial(TransformersNgram, asked.lookup_max, stop_ids)
    if engine == "llama-cpp" and draft_flags.llama_types(asked) == ["ngram-simple"]:
        return partial(LlamaCppNgram, asked.lookup_max, asked.num_draft_tokens)
    return None


def copied_tau(
    answers: Sequence[Example], lookup: NewLookup, num_draft_tokens: int, max_new_tokens: int, *, first_drafted: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Emitted tokens and target calls of each answer, float64 [answers] each, for `statistics.ratio`.

    Args:
        answers: The plain engine's, in the order in which they were written.
        lookup: Result of `lookup_of`.
        num_draft_tokens: Most tokens of a proposal.
        max_new_tokens: Limit of the answers.
        first_drafted: Whether the prompt's own pass verifies a proposal too.
    """
    walks = [
        walk(answer, lookup, num_draft_tokens, max_new_tokens, None, first_drafted=first_drafted) for answer in answers
    ]
    return np.array([walk.tokens for walk in walks]), np.array([walk.rounds for walk in walks])
