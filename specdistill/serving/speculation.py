"""Counts of draft tokens by the engine itself, in one form, read from vLLM, llama.cpp and SGLang."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

from specdistill.errors import ServerError

_VLLM = re.compile(r"^vllm:spec_decode_num_(\w+?)_total(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_VLLM_CALLS = re.compile(r"^vllm:inter_token_latency_seconds_count(?:\{.*\})? (\S+)$", re.MULTILINE)
_POSITION = re.compile(r'position="(\d+)"')


@dataclass(frozen=True)
class Speculation:
    """Counts over one answer, or over the answers of one batch."""

    rounds: int
    """Number of verifications."""
    proposed: int
    """Draft tokens."""
    accepted: int
    """Draft tokens that were kept."""
    accepted_by_position: tuple[int, ...] | None = None
    """Kept first, second, ... tokens of a draft; None where the engine counts no positions."""
    proposing: int | None = None
    """Those of the rounds in which anything was proposed; None where the engine does not tell, or all did."""

    def __add__(self, other: Speculation) -> Speculation:
        return self._with(other, 1)

    def __sub__(self, other: Speculation) -> Speculation:
        return self._with(other, -1)

    def _with(self, other: Speculation, sign: int) -> Speculation:
        positions = None
        if self.accepted_by_position is not None and other.accepted_by_position is not None:
            pairs = zip(self.accepted_by_position, other.accepted_by_position, strict=True)
            positions = tuple(ours + sign * theirs for ours, theirs in pairs)
        return Speculation(
            self.rounds + sign * other.rounds,
            self.proposed + sign * other.proposed,
            self.accepted + sign * other.accepted,
            positions,
            None if self.proposing is None or other.proposing is None else self.proposing + sign * other.proposing,
        )


def total_of(counts: Iterable[Speculation | None]) -> Speculation | None:
    """The sum of the known counts; None where none is known."""
    known = [entry for entry in counts if entry is not None]
    return reduce(add, known) if known else None


def another_length(counts: Speculation, num_draft_tokens: int, answers: int) -> float | None:
    """Draft tokens per verification where the counts contradict `num_draft_tokens`; None where they agree.

    Without positions the ends of answers blur the counts: each answer may hide a round there, and where few tokens are
    left fewer are drafted, in the worst case K - 1, K - 2 and so on down to none in its last K rounds.

    Args:
        counts: Over the answers.
        num_draft_tokens: Draft tokens that the server should propose.
        answers: Number of answers.
    """
    if counts.accepted_by_position is not None:
        found = len(counts.accepted_by_position)
        return None if found == num_draft_tokens else float(found)
    if not counts.rounds:
        return None
    mean = max(counts.proposed, counts.accepted) / counts.rounds
    is_more = mean * counts.rounds > num_draft_tokens * (counts.rounds + answers)
    lost = answers * num_draft_tokens * (num_draft_tokens + 1) // 2
    is_fewer = counts.proposed + lost <= (num_draft_tokens - 1) * counts.rounds
    return mean if is_more or is_fewer else None


def from_vllm_metrics(page: str, *, copies: bool = False) -> Speculation | None:
    """Reads the running totals on vLLM's /metrics page, over all of its engines; None where it does not speculate.

    Source: vllm/v1/spec_decode/metrics.py (0.32): `num_drafts`, `num_draft_tokens`, `num_accepted_tokens` and
    `num_accepted_tokens_per_pos{position=i}`, the last unconditional. vllm/v1/metrics/stats.py: each target call behind
    the prompt's own is one `inter_token_latency` of each of its requests.

    Args:
        page: Text of the page.
        copies: Whether the method may propose nothing. Then all calls are rounds, not only those with a draft.
    """
    totals: dict[str, float] = {}
    positions: dict[int, float] = {}
    for name, labels, value in _VLLM.findall(page):
        place = _POSITION.search(labels or "")
        if name == "accepted_tokens_per_pos" and place:
            positions[int(place[1])] = positions.get(int(place[1]), 0) + float(value)
        else:
            totals[name] = totals.get(name, 0) + float(value)
    if not {"drafts", "draft_tokens", "accepted_tokens"} <= totals.keys():
        return None
    drafts = int(totals["drafts"])
    calls = sum(int(float(value)) for value in _VLLM_CALLS.findall(page))
    return Speculation(
        calls if copies else drafts,
        int(totals["draft_tokens"]),
        int(totals["accepted_tokens"]),
        tuple(int(positions[place]) for place in sorted(positions)) if positions else None,
        drafts if copies else None,
    )


def from_llama_timings(timings: Mapping[str, Any], *, copies: bool = False) -> Speculation | None:
    """Reads `timings` of llama.cpp's last event; None where it did not draft.

    It counts drafted and accepted tokens. Each target call emits the accepted ones and one of its own, and the prompt's
    own call emits the first: so calls = tokens - accepted - 1.

    Args:
        timings: The object.
        copies: Whether the method may propose nothing for a whole answer; then the counts are left out.
    """
    if "draft_n" not in timings:
        if not copies:
            return None
        timings = {**timings, "draft_n": 0, "draft_n_accepted": 0}
    try:
        tokens, drafted, accepted = (int(timings[name]) for name in ("predicted_n", "draft_n", "draft_n_accepted"))
    except (KeyError, TypeError, ValueError):
        raise ServerError(f"llama.cpp's timings can't be read: {str(dict(timings))[:120]}") from None
    return Speculation(max(0, tokens - accepted - 1), drafted, accepted)


def from_sglang_meta(meta: Mapping[str, Any], num_draft_tokens: int) -> Speculation | None:
    """Reads `meta_info` of SGLang's last event; None where it did not draft. From its source; never run here.

    It reports target calls (`spec_verify_ct`) and the answer's tokens; the prompt's own call emits the first.
    """
    if "spec_verify_ct" not in meta:
        return None
    try:
        calls, tokens = int(meta["spec_verify_ct"]), int(meta["completion_tokens"])
    except (KeyError, TypeError, ValueError):
        raise ServerError(f"SGLang's meta_info can't be read: {str(dict(meta))[:120]}") from None
    return Speculation(calls, calls * num_draft_tokens, max(0, tokens - 1 - calls))
