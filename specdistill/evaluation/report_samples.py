"""The bench report's `samples`; see `report`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SampleToken:
    """One token of a sample."""

    text: str
    """Text that the token adds. Where a character spans several tokens the last of them has it; the others have ""."""
    by: str
    """`draft`: proposed by the draft and accepted. `target`: the target's own."""
    p: float
    """The target's probability of the token, after temperature and filters; at temperature 0, of temperature 1."""
    q: float
    """The draft's probability of the token, like `p`."""
    proposed: str | None = None
    """Text of the draft token that was rejected here; absent where none was. "" is a part of a character."""
    proposed_p: float | None = None
    """The target's probability of `proposed`."""
    proposed_q: float | None = None
    """The draft's probability of `proposed`."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One answer of the timed speculative run."""

    prompt_id: str
    """Id of the prompt."""
    category: str
    """Category of the prompt."""
    prompt: str
    """Text of the prompt's last turn, cut after 400 characters."""
    tokens: list[SampleToken]
    """The answer's tokens, 256 at most."""
    shortened: bool
    """Whether the answer went on after them."""
