"""Names of the scorers of answers, for configurations. `specdistill.data.scorers` has the scorers."""

from __future__ import annotations

LIKELIHOOD = "target-likelihood"
"""The target's own likelihood: it chooses among candidates, and judges no finished answer."""
TEXT_SCORERS = ("exact-match", "number", "json")
"""Scorers that compare an answer's text with the field answer."""
CHOICES = f"{', '.join(TEXT_SCORERS)} or module:function"
"""The scorers of texts, for messages."""
