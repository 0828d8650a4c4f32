"""When an answer ends: a stop id, a stop string, or the length limit."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from specdistill.models import LanguageModel


@dataclass(frozen=True)
class Stopping:
    """The three ways to end an answer. They are checked after every token, however many tokens come at a time."""

    token_ids: frozenset[int]
    """Any of these ids ends the answer and is its last token."""
    max_new_tokens: int
    """Most tokens of an answer."""
    strings: tuple[str, ...] = ()
    """An answer ends with the token that completes one of these strings. The token stays."""
    tokenizer: PreTrainedTokenizerBase | None = None
    """Needed only if there are stop strings."""

    @staticmethod
    def of(model: LanguageModel, max_new_tokens: int, strings: tuple[str, ...] = ()) -> Stopping:
        """Takes the stop ids from the model; empty stop strings are left out."""
        return Stopping(
            model.eos_token_ids, max_new_tokens, tuple(string for string in strings if string), model.tokenizer
        )

    def reason(self, token_ids: list[int]) -> str | None:
        """Says why an answer ends with its last token: `eos`, `stop` or `length`; None if it goes on."""
        if token_ids[-1] in self.token_ids:
            return "eos"
        if self.strings and self._completes_string(token_ids):
            return "stop"
        return "length" if len(token_ids) >= self.max_new_tokens else None

    def _completes_string(self, token_ids: list[int]) -> bool:
        assert self.tokenizer is not None, "stop strings need the tokenizer"
        # A character takes at most four byte tokens, so this tail covers every string that the last token can complete.
        tail = token_ids[-(4 * max(map(len, self.strings)) + 1) :]
        text = self.tokenizer.decode(tail)
        return any(string in text for string in self.strings)
