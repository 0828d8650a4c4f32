"""Whether other work on the machine disturbed the times of single passes; said by `bench` and `advise` alike."""

from __future__ import annotations

from collections.abc import Mapping

_DISTURBED = 1.2
"""A pass over fewer tokens that takes so many times as long as a wider one was timed beside other work."""


def disturbed_checks(verify_cost: Mapping[int, float]) -> str | None:
    """Says that the times of the target's passes can't all be right; None where they grow as they should.

    Args:
        verify_cost: Tokens in one target pass -> its time, in any unit.
    """
    pair = _out_of_order(verify_cost)
    if pair is None:
        return None
    narrow = "1 token" if pair[0] == 1 else f"{pair[0]} tokens"
    return f"checking {narrow} took longer than checking {pair[1]}, so that other work disturbed the times"


def _out_of_order(verify_cost: Mapping[int, float]) -> tuple[int, int] | None:
    """Two widths of which the smaller one took much longer; None where times grow as they should."""
    for narrow, cost in verify_cost.items():
        for wide, other in verify_cost.items():
            if wide > narrow and cost > _DISTURBED * other:
                return narrow, wide
    return None
