"""Sample answers in words, the same for terminal and page."""

from __future__ import annotations

from specdistill.evaluation.report_samples import Sample, SampleToken
from specdistill.report.wording_verdict import tokens

NO_CHARACTER = "…"
"""Stands for a rejected token that is only a part of a character."""
_VISIBLE = str.maketrans({"\n": "↵", "\t": "⇥"})
# Other control characters as their pictures: an escape sequence in an answer must not command the terminal.
_PICTURES = {code: chr(0x2400 + code) for code in range(32) if code not in (9, 10)} | {127: "\u2421"}
_PICTURES |= dict.fromkeys(range(128, 160), "\ufffd")


def shown(text: str) -> str:
    """Text of a prompt or a token, with pictures in place of control characters."""
    return text.translate(_PICTURES)


def is_blank(sample: Sample) -> bool:
    """Whether nothing of the answer can be seen."""
    return not "".join(token.text for token in sample.tokens).strip()


def visible(text: str) -> str:
    """Text in which spaces and ends of lines can be seen, for an answer that has nothing else."""
    return shown(text.translate(_VISIBLE).replace(" ", "\u00b7"))


def rejected_text(token: SampleToken) -> str | None:
    """Text of the rejected token on one line, in which an empty one can be seen; None where none was rejected."""
    if token.proposed is None:
        return None
    return shown(token.proposed.translate(_VISIBLE)) or NO_CHARACTER


def token_title(token: SampleToken) -> str:
    """Probabilities of a token, and of the rejected one."""
    if token.by == "draft":
        return f"accepted draft token: draft {probability(token.q)}, target {probability(token.p)}"
    own = f"target's own token: target {probability(token.p)}, draft {probability(token.q)}"
    if token.proposed is None:
        return own
    return f"{own}; rejected draft token: {rejected_title(token)}"


def rejected_title(token: SampleToken) -> str:
    """Probabilities of the rejected token."""
    return f"draft {probability(token.proposed_q)}, target {probability(token.proposed_p)}"


def probability(value: float | None) -> str:
    """`0.42`; `below 0.01` for what would be rounded to nothing."""
    if value is None:
        return "unknown"
    return "below 0.01" if value < 0.005 else f"{value:.2f}"


def sample_counts(sample: Sample) -> str:
    """Counts of a sample in a line: `64 tokens: 41 from the draft, 23 from the target; 12 draft tokens rejected`."""
    accepted = sum(token.by == "draft" for token in sample.tokens)
    rejected = sum(token.proposed is not None for token in sample.tokens)
    first = "first " if sample.shortened else ""
    return (
        f"{first}{tokens(len(sample.tokens))}: {accepted} from the draft, {len(sample.tokens) - accepted} from the "
        f"target; {tokens(rejected, 'draft')} rejected"
    )
