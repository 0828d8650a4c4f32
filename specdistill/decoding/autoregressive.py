"""Plain decoding, one token per target call: the baseline that a draft has to beat, and the source of rollouts."""

from __future__ import annotations

import itertools
import time

import torch

from specdistill.decoding.cached_model import CachedModel
from specdistill.decoding.generation import Generation, OnTokens, check_lengths
from specdistill.decoding.guidance import Guidance
from specdistill.decoding.sampling import Keys, Sampling, pick
from specdistill.decoding.stopping import Stopping
from specdistill.models import LanguageModel


def prefill(cached: CachedModel, prompts: list[list[int]]) -> torch.Tensor:
    """Feeds the prompts and returns each row's last hidden state, [batch, hidden]."""
    longest = max(map(len, prompts))
    device = cached.model.device
    padded = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts], device=device)
    hidden = cached.forward(padded)
    cached.advance([len(prompt) for prompt in prompts])
    last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
    return hidden[torch.arange(len(prompts), device=device), last]


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
    """Generates one answer per prompt, all prompts in one batch; rows leave the batch as they end.

    Args:
        model: Any causal model; a trimmed head generates its kept ids only.
        prompts: Token ids of each prompt.
        sampling: Temperature and filters.
        max_new_tokens: Limit per answer.
        seeds: One per prompt. In float32 a row gives the same tokens alone or in a batch, up to rounding.
        stop_strings: An answer also ends with the token that completes one of these.
        on_tokens: Called for each new token, for streaming and progress.
        guidance: Classifier-free guidance: each row has a twin that reads the negative prompt and the same answer.

    Returns:
        Generations in the order of the prompts.

    Raises:
        DataError: A prompt is empty or does not fit the context.
    """
    twins = [] if guidance is None else [list(guidance.negative_ids)] * len(prompts)
    check_lengths(prompts + twins, max_new_tokens, model)
    results = [Generation() for _ in prompts]
    stopping = Stopping.of(model, max_new_tokens, stop_strings)
    start = time.perf_counter()
    with model.generating():
        fed = prompts + twins
        cached = CachedModel(model, len(fed), max(map(len, fed)) + max_new_tokens)
        keys = Keys(
            torch.tensor(seeds, device=model.device), torch.zeros(len(seeds), dtype=torch.int64, device=model.device)
        )
        alive = list(range(len(prompts)))
        hidden = prefill(cached, fed)
        for step in itertools.count():
            if guidance is not None:
                hidden = guidance.combine(*hidden.chunk(2))
            # All rows have emitted equally many tokens, those that have ended aside.
            tokens = model.to_token_ids(pick(cached.own_logits(hidden), sampling, keys, ahead=step))
            for row, token in zip(alive, tokens.tolist(), strict=True):
                taken = results[row].emit([token], 0, stopping)
                if on_tokens is not None:
                    on_tokens(row, taken)
                if len(results[row].token_ids) == 1:
                    results[row].first_token_seconds = time.perf_counter() - start
            going = [index for index, row in enumerate(alive) if results[row].finish_reason is None]
            if not going:
                break
            if len(going) < len(alive):
                cached.select(going if guidance is None else [*going, *(len(alive) + index for index in going)])
                keys = keys.of_rows(going)
                alive = [alive[index] for index in going]
                tokens = tokens[torch.tensor(going, device=tokens.device)]
            fed_tokens = tokens if guidance is None else tokens.repeat(2)
            hidden = cached.forward(fed_tokens[:, None])[:, 0]
            cached.advance([1] * len(fed_tokens))
    for result in results:
        result.seconds = time.perf_counter() - start
        result.model_seconds = cached.seconds
        result.target_calls = cached.calls
    return results
