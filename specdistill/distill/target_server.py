"""A target that is served elsewhere: it answers prompts and labels tokens through vLLM's completions API.

Only the target's configuration and tokenizer are read here. What the server tells of a token is the K likeliest ids
with their log-probabilities, at temperature 1 whatever the request says (vLLM applies none to those of a prompt); the
rest is one outcome of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Many
from typing import Any

import torch

from specdistill.data.batch import Sequence
from specdistill.data.soft_labels import TokenLabels, padded
from specdistill.decoding import Generation, Sampling
from specdistill.errors import IncompatibleModelsError, ServerError
from specdistill.model_server import ModelServer
from specdistill.models import LanguageModel
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
        self.max_context = min(target.max_context, server.max_context or target.max_context)

    def token_labels(self, sequence: Sequence) -> TokenLabels:
        """Of one sequence."""
        return self.labels_of([sequence])[0]

    def labels_of(self, sequences: Many[Sequence]) -> list[TokenLabels]:
        """Of each sequence, in order; the requests run at the same time."""
        bodies = [
            {
                "prompt": [*each.prompt_ids, *each.answer_ids],
                # The server must write something; one token is the least.
                "max_tokens": 1,
                "temperature": 0,
                "prompt_logprobs": self._top_k,
            }
            for each in sequences
        ]
        try:
            choices = self._server.complete(bodies)
        except ServerError as error:
            if error.status == 400 and "logprobs" in str(error):
                raise ServerError(
                    f"{error}; lower --server-top-k, or raise the server's --max-logprobs", 400
                ) from error
            raise
        return [self._read(*both) for both in zip(sequences, choices, strict=True)]

    def of(self, sequences: Many[Sequence]) -> list[SoftLabels]:
        """What the loss trains on, in the order of the sequences."""
        return [padded(labels, labels.log_probs) for labels in self.labels_of(sequences)]

    def write(
        self, prompts: list[list[int]], sampling: Sampling, max_new_tokens: int, seeds: list[int]
    ) -> list[Generation]:
        """Answers by the server, each with its own seed."""
        bodies = [
            {
                "prompt": prompt,
                "max_tokens": max_new_tokens,
                "temperature": sampling.temperature,
                # All of them, or the server would take what the model's generation_config suggests.
                "top_k": sampling.top_k or -1,
                "top_p": sampling.top_p,
                "min_p": sampling.min_p,
                "repetition_penalty": 1.0,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
                "seed": seed % 2**63,
                "stop_token_ids": sorted(self._target.eos_token_ids),
                "return_token_ids": True,
                "skip_special_tokens": False,
            }
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return [self._generation(choice) for choice in self._server.complete(bodies)]

    def _generation(self, choice: dict[str, Any]) -> Generation:
        ids = choice.get("token_ids")
        if not isinstance(ids, list) or not all(isinstance(each, int) for each in ids):
            raise ServerError(
                f"{self._server.url} returns no token ids (return_token_ids); update its vLLM, or make the answers "
                "with 'specdistill generate' and pass them with --rollouts"
            )
        ended = bool(ids) and ids[-1] in self._target.eos_token_ids
        return Generation(token_ids=ids, finish_reason="eos" if ended else "length")

    def _read(self, sequence: Sequence, choice: dict[str, Any]) -> TokenLabels:
        entries = choice.get("prompt_logprobs")
        length = len(sequence.prompt_ids) + len(sequence.answer_ids)
        if not isinstance(entries, list) or len(entries) != length:
            raise ServerError(f"{self._server.url} returns no prompt_logprobs for {length} tokens; is it vLLM?")
        ids, log_probs, counts = [], [], []
        for entry in entries[len(sequence.prompt_ids) :]:
            try:
                found = {int(name): float(each["logprob"]) for name, each in entry.items()}
            except (AttributeError, KeyError, TypeError, ValueError):
                raise ServerError(f"{self._server.url} returns prompt_logprobs of an unknown form") from None
            # Padding rows of the head have ids too, and next to no probability.
            rows = self._target.head_weight.shape[0]
            fitting = {name: value for name, value in found.items() if name < self._target.vocab_size}
            if not fitting or max(found) >= rows or not all(map(_is_log_prob, found.values())):
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
