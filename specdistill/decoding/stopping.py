"""When an answer ends: a stop id, a stop string, or the length limit."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from specdistill.models import LanguageModel


@dataclass(frozen=True)
class Stopping:
    """The three ways to end; looked at after every single token, so that how tokens were batched changes nothing."""

    token_ids: frozenset[int]
    """Any of these ends the answer and is its last token."""
    max_new_tokens: int
    strings: tuple[str, ...] = ()
    """The answer ends with the token that completes one of these; the token stays."""
    tokenizer: PreTrainedTokenizerBase | None = None
    """Needed for strings only."""

    @staticmethod
    def of(model: LanguageModel, max_new_tokens: int, strings: tuple[str, ...] = ()) -> Stopping:
        """The model's own stop ids, and what the caller adds."""
        return Stopping(model.eos_token_ids, max_new_tokens, tuple(each for each in strings if each), model.tokenizer)

    def reason(self, token_ids: list[int]) -> str | None:
        """`eos`, `stop` or `length` if the answer ends with its last token, else None."""
        if token_ids[-1] in self.token_ids:
            return "eos"
        if self.strings and self._found(token_ids):
            return "stop"
        return "length" if len(token_ids) >= self.max_new_tokens else None

    def _found(self, token_ids: list[int]) -> bool:
        assert self.tokenizer is not None, "stop strings need the tokenizer"
        # A character takes at most four byte tokens, so this tail holds every string that the last token can complete.
        tail = token_ids[-(4 * max(map(len, self.strings)) + 1) :]
        text = self.tokenizer.decode(tail)
        return any(each in text for each in self.strings)
