"""transformers' own assisted generation, in this process."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch
import transformers
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from specdistill.decoding import Generation, Sampling
from specdistill.models import LanguageModel
from specdistill.serving.engine import Answered, OnTokens
from specdistill.serving.speculation import Speculation, total_of


class _Arrivals(BaseStreamer):
    """Counts the tokens that each target call gave, and records when the first came."""

    def __init__(self, on_tokens: OnTokens) -> None:
        self.counts: list[int] = []
        self.first: float | None = None
        self._prompt, self._on_tokens = True, on_tokens

    def put(self, value: torch.Tensor) -> None:
        if self._prompt:
            self._prompt = False
            return
        if self.first is None:
            self.first = time.perf_counter()
        self.counts.append(value.numel())
        self._on_tokens(value.numel())

    def end(self) -> None:
        pass


class AssistedEngine:
    """`generate`, with `assistant_model=draft`, with prompt lookup, or alone.

    transformers reports no acceptance. A hook counts calls of the target, and a streamer the tokens that each call
    gave.

    Args:
        target: The model that is served. Its generation settings are replaced by fresh ones, as are the draft's: what a
            checkpoint's generation_config.json asks for (penalties, cut-offs, suppressed ids) is not applied.
        draft: Its draft, which proposes `num_draft_tokens` per call; None decodes plainly.
        num_draft_tokens: Draft tokens per verification.
        other_tokenizer: Whether the draft has another tokenizer, so that its text is encoded again for the target
            (universal assisted decoding). The counts are in the target's tokens.
        lookup_max: Longest run of tokens to look for in the text, in place of a draft; 0 looks for none.
    """

    counters = "calls of the target and the tokens that each gave"
    first_drafted = True

    def __init__(
        self,
        target: LanguageModel,
        draft: LanguageModel | None,
        num_draft_tokens: int,
        *,
        other_tokenizer: bool = False,
        lookup_max: int = 0,
    ) -> None:
        self._target, self._num_draft_tokens, self._copies = target, num_draft_tokens, lookup_max > 0
        self.version = f"transformers {transformers.__version__}"
        self._drafting: dict[str, Any] = {} if draft is None else {"assistant_model": draft.model}
        if draft is not None and other_tokenizer:
            self._drafting |= {"tokenizer": target.tokenizer, "assistant_tokenizer": draft.tokenizer}
        if lookup_max:
            self._drafting = {"prompt_lookup_num_tokens": num_draft_tokens, "max_matching_ngram_size": lookup_max}
        _refresh(target)
        if draft is not None:
            settings: Any = _refresh(draft)
            settings.num_assistant_tokens = num_draft_tokens
            settings.num_assistant_tokens_schedule = "constant"
            # Always that many: its default stops where the draft doubts, by a threshold that drifts.
            settings.assistant_confidence_threshold = 0.0

    def answer(
        self,
        prompts: list[list[int]],
        sampling: Sampling,
        max_new_tokens: int,
        seeds: list[int],
        on_tokens: OnTokens = lambda count: None,
    ) -> Answered:
        """See `Engine`; one prompt after the other."""
        answered = [
            self._one(prompt, sampling, max_new_tokens, seed, on_tokens)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        seconds = sum(generation.seconds for generation, _ in answered)
        for generation, _ in answered:
            generation.seconds = seconds
        return Answered([generation for generation, _ in answered], total_of(counts for _, counts in answered))

    def close(self) -> None:
        """Nothing was started."""

    @torch.inference_mode()
    def _one(
        self, prompt: list[int], sampling: Sampling, most: int, seed: int, on_tokens: OnTokens
    ) -> tuple[Generation, Speculation | None]:
        model: Any = self._target.model
        ids = torch.tensor([prompt], device=self._target.device)
        arrivals, widths = _Arrivals(on_tokens), []
        hook = model.register_forward_pre_hook(
            lambda module, inputs, keywords: widths.append(keywords["input_ids"].shape[1]), with_kwargs=True
        )
        torch.manual_seed(seed % 2**63)
        start = time.perf_counter()
        try:
            written = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=most,
                streamer=arrivals,
                eos_token_id=sorted(self._target.eos_token_ids),
                pad_token_id=min(self._target.eos_token_ids),
                **_sampling(sampling),
                **self._drafting,
            )[0, len(prompt) :].tolist()
        finally:
            hook.remove()
        end = time.perf_counter()
        ended = bool(written) and written[-1] in self._target.eos_token_ids
        generation = Generation(written, finish_reason="eos" if ended else "length", seconds=end - start)
        generation.first_token_seconds = (arrivals.first or end) - start
        if not self._drafting:
            return generation, None
        # The first call reads the prompt and the draft, every later one the last token and the draft.
        proposed = [width - (len(prompt) if call == 0 else 1) for call, width in enumerate(widths)]
        counts = _speculation(proposed, arrivals.counts, self._num_draft_tokens)
        proposing = sum(width > 0 for width in proposed)
        return generation, dataclasses.replace(counts, proposing=proposing) if self._copies else counts


def _refresh(model: LanguageModel) -> GenerationConfig:
    """Replaces the settings that `generate` fills its gaps from; only the ids of the tokenizer stay."""
    old: Any = model.model.generation_config
    stops = sorted(model.eos_token_ids)
    fresh = GenerationConfig(bos_token_id=old.bos_token_id, eos_token_id=stops, pad_token_id=min(stops))
    model.model.generation_config = fresh
    return fresh


def _sampling(sampling: Sampling) -> dict[str, Any]:
    if sampling.greedy:
        return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None, "min_p": None}
    return {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p or None,
    }


def _speculation(proposed: list[int], emitted: list[int], num_draft_tokens: int) -> Speculation:
    accepted = [min(count - 1, width) for count, width in zip(emitted, proposed, strict=False)]
    positions = tuple(sum(kept > place for kept in accepted) for place in range(num_draft_tokens))
    return Speculation(len(emitted), sum(proposed), sum(accepted), positions)
