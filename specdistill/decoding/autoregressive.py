"""Plain decoding, one token per target call: the baseline that a draft has to beat, and the source of rollouts."""

from __future__ import annotations

import itertools
import time

import torch

from specdistill.decoding.generation import Generation, OnTokens, check_lengths
from specdistill.decoding.guidance import Guidance
from specdistill.decoding.guided_model import cached_model
from specdistill.decoding.sampling import Keys, Sampling, draw, ids_of, refuse_undefined
from specdistill.decoding.stopping import Stopping
from specdistill.decoding.transfers import read_back, to_device
from specdistill.models import LanguageModel


def generate_plain(
    model: LanguageModel,
    prompts: list[list[int]],
    *,
    sampling: Sampling,
    max_new_tokens: int,
    seeds: list[int],
    stop_strings: tuple[str, ...] = (),
    on_tokens: OnTokens | None = None,
    guidance: Guidance | None = None,
) -> list[Generation]:
    """Generates one answer per prompt, all prompts in one batch. Rows leave the batch when their answers end.

    Args:
        model: Any causal model. A model with a trimmed head generates only the ids that its head keeps.
        prompts: Token ids of each prompt.
        sampling: Temperature and filters.
        max_new_tokens: Limit per answer.
        seeds: One per prompt. In float32 a row gives the same tokens alone or in a batch, up to rounding.
        stop_strings: An answer also ends with the token that completes one of these.
        on_tokens: Called for each new token, for streaming and progress.
        guidance: Classifier-free guidance. Each row gets a twin that reads the negative prompt and the same answer.

    Returns:
        Generations in the order of the prompts.

    Raises:
        DataError: A prompt is empty or does not fit the context.
    """
    negative_prompts = [] if guidance is None else [list(guidance.negative_ids)] * len(prompts)
    check_lengths(prompts + negative_prompts, max_new_tokens, model)
    results = [Generation() for _ in prompts]
    stopping = Stopping.of(model, max_new_tokens, stop_strings)
    start = time.perf_counter()
    with model.generating():
        rows = _Rows(model, prompts, max_new_tokens, seeds, guidance)
        for step in itertools.count():
            # Rows still in the batch have all emitted `step` tokens.
            tokens = rows.pick_tokens(sampling, step)
            (picked,) = read_back(tokens)
            refuse_undefined(picked)
            for prompt, token in zip(rows.alive, picked, strict=True):
                emitted = results[prompt].emit([token], 0, stopping)
                if on_tokens is not None:
                    on_tokens(prompt, emitted)
                if step == 0:
                    results[prompt].first_token_seconds = time.perf_counter() - start
            unfinished = [row for row, prompt in enumerate(rows.alive) if results[prompt].finish_reason is None]
            if not unfinished:
                break
            rows.feed(tokens, unfinished)
    for result in results:
        result.seconds = time.perf_counter() - start
        result.model_seconds = rows.cached.seconds
        result.target_calls = rows.cached.calls
    return results


class _Rows:
    """Rows of one `generate_plain` call whose answers still grow."""

    def __init__(
        self,
        model: LanguageModel,
        prompts: list[list[int]],
        max_new_tokens: int,
        seeds: list[int],
        guidance: Guidance | None,
    ) -> None:
        self._model = model
        self.alive = list(range(len(prompts)))
        """Index of the prompt that each row answers."""
        device = model.device
        self._keys = Keys(to_device(seeds, device), torch.zeros(len(seeds), dtype=torch.int64, device=device))
        self.cached = cached_model(model, len(prompts), max(map(len, prompts)) + max_new_tokens, guidance)
        self._hidden = self.cached.read(prompts)

    def pick_tokens(self, sampling: Sampling, step: int) -> torch.Tensor:
        """Picks the next token id of each row, int64 [rows]; -1 where there is none."""
        logits = self.cached.own_logits(self._hidden)
        return ids_of(self._model, draw(logits, sampling, self._keys, ahead=step))

    def feed(self, tokens: torch.Tensor, unfinished: list[int]) -> None:
        """Drops the other rows, and runs the model on the new tokens of the unfinished ones."""
        if len(unfinished) < len(self.alive):
            self.cached.select(unfinished)
            self._keys = self._keys.of_rows(unfinished)
            self.alive = [self.alive[row] for row in unfinished]
            tokens = tokens[to_device(unfinished, tokens.device)]
        self._hidden = self.cached.read_next(tokens)
