"""A target that is served elsewhere, by vLLM or SGLang: it answers prompts and labels tokens.

Only the target's configuration and tokenizer are read here. The server tells the K likeliest ids of a token with their
log-probabilities, at temperature 1 whatever the request says (none is applied to those of a prompt); the
rest is one outcome of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from specdistill.data.batch import Example
from specdistill.data.soft_labels import TokenLabels, padded
from specdistill.decoding import Generation, Sampling
from specdistill.errors import IncompatibleModelsError, ServerError
from specdistill.models import LanguageModel
from specdistill.servers.client import ModelServer
from specdistill.servers.dialects import dialect_of
from specdistill_kernels import SoftLabels

_PROBE = "Speculative decoding: def f(x):\n    return x**2  # naïve café, 12345 €"


class TargetServer:
    """Labels and answers of a served target.

    Args:
        server: Where it is.
        target: Its shell: vocabulary and stop ids.
        top_k: Ids per token; the server allows a limited number (vLLM: 20 unless --max-logprobs is raised).

    Raises:
        IncompatibleModelsError: The server's model has another tokenizer, or a shorter context.
    """

    def __init__(self, server: ModelServer, target: LanguageModel, top_k: int) -> None:
        self._server, self._target, self._top_k = server, target, top_k
        theirs = server.tokenize(_PROBE)
        ours = target.tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
        if theirs is not None and theirs != ours:
            raise IncompatibleModelsError(
                f"{server.url} serves {server.model!r}, whose tokenizer is not that of --target {target.name}; name "
                "the model that is served"
            )
        self._dialect = dialect_of(server.owner)
        # A server writes at least one token after a text that it labels.
        self.max_context = min(target.max_context, (server.max_context or target.max_context + 1) - 1)

    def labels_of(self, sequences: Sequence[Example]) -> list[TokenLabels]:
        """Labels of each sequence, in order; the requests run at the same time."""
        sequences = [row.as_target_reads for row in sequences]
        bodies = [self._dialect.label_body([*row.prompt_ids, *row.answer_ids], self._top_k) for row in sequences]
        try:
            answers = self._ask(bodies)
        except ServerError as error:
            if error.status == 400 and "logprobs" in str(error):
                raise ServerError(
                    f"{error}; lower --server-top-k, or raise the server's --max-logprobs", 400
                ) from error
            raise
        return [self._read(*both) for both in zip(sequences, answers, strict=True)]

    def soft_labels(self, sequences: Sequence[Example]) -> list[SoftLabels]:
        """Labels for the loss, in the order of the sequences."""
        return [padded(labels, labels.log_probs) for labels in self.labels_of(sequences)]

    def write(
        self, prompts: list[list[int]], sampling: Sampling, max_new_tokens: int, seeds: list[int]
    ) -> list[Generation]:
        """Answers by the server, each with its own seed."""
        stop = sorted(self._target.eos_token_ids)
        bodies = [
            self._dialect.answer_body(prompt, sampling, max_new_tokens, seed, stop)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return [self._generation(answer) for answer in self._ask(bodies)]

    def _ask(self, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
        named = {"model": self._server.model} if self._dialect.names_model else {}
        return self._server.ask(self._dialect.path, [named | body for body in bodies])

    def _generation(self, answer: dict[str, Any]) -> Generation:
        try:
            ids = self._dialect.answer_ids(answer)
        except (KeyError, IndexError, TypeError, ValueError):
            raise ServerError(
                f"{self._server.url} returns no token ids; update it, or make the answers with 'specdistill generate' "
                "and pass them with --rollouts"
            ) from None
        ended = bool(ids) and ids[-1] in self._target.eos_token_ids
        return Generation(token_ids=ids, finish_reason="eos" if ended else "length")

    def _read(self, sequence: Example, answer: dict[str, Any]) -> TokenLabels:
        length = len(sequence.prompt_ids) + len(sequence.answer_ids)
        try:
            entries = self._dialect.entries(answer)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            entries = []
        if len(entries) != length or None in entries[1:]:
            raise ServerError(
                f"{self._server.url} returns no log-probabilities of {length} prompt tokens; is it vLLM or SGLang?"
            )
        rows = self._target.head_weight.shape[0]
        ids, log_probs, counts = [], [], []
        for entry in entries[len(sequence.prompt_ids) :]:
            # Padding rows of the head have ids too, and next to no probability.
            fitting = {name: value for name, value in (entry or {}).items() if name < self._target.vocab_size}
            if not entry or not fitting or max(entry) >= rows or not all(map(_is_log_prob, entry.values())):
                raise ServerError(
                    f"{self._server.url} returns ids or probabilities that don't fit the vocabulary of "
                    f"{self._target.name} ({self._target.vocab_size} ids)"
                )
            ids += list(fitting)
            log_probs += list(fitting.values())
            counts.append(len(fitting))
        return TokenLabels(
            torch.tensor(ids, dtype=torch.int64), torch.tensor(log_probs), torch.tensor(counts, dtype=torch.int64)
        )


def _is_log_prob(value: float) -> bool:
    # A rounding above 0 happens; -inf is what a server writes for an id that it masked.
    return not math.isnan(value) and value < 1e-3
