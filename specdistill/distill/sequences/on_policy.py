"""The draft's own answers, written while it trains."""

from __future__ import annotations

from collections.abc import Sequence

from specdistill.data.batch import Example, Provenance
from specdistill.data.prompts import Prompt
from specdistill.decoding import Sampling, generate_plain
from specdistill.decoding.generation import as_example
from specdistill.distill.answers.engine import RolloutEngine
from specdistill.distill.processes.ranks import ALONE, Ranks
from specdistill.distill.sequences.pool import PromptSampler, SampledSource
from specdistill.models import LanguageModel


class OnPolicy(SampledSource):
    """The draft answers prompts itself, with its current weights: it learns where its own mistakes lead."""

    def __init__(
        self,
        draft: LanguageModel,
        prompts: Sequence[Prompt],
        encoded: Sequence[list[int]],
        sampling: Sampling,
        max_new_tokens: int,
        batch_size: int,
        seed: int,
        ranks: Ranks = ALONE,
        engine: RolloutEngine | None = None,
        push_every: int = 1,
    ) -> None:
        self._engine, self._push_every = engine, push_every
        self._pushed: int | None = None
        self._draft, self._sampling, self._max_new_tokens = draft, sampling, max_new_tokens
        self._sampler = self._prompts = PromptSampler(prompts, encoded, batch_size, seed, ranks)

    def next_batch(self, step: int) -> list[Example]:
        chosen = self._prompts.next_prompts()
        if not chosen:
            return []
        asked, seeds = [ids for _, ids, _ in chosen], [seed for _, _, seed in chosen]
        if self._engine is None:
            written = generate_plain(
                self._draft, asked, sampling=self._sampling, max_new_tokens=self._max_new_tokens, seeds=seeds
            )
        else:
            if self._pushed is None or step - self._pushed >= self._push_every:
                self._engine.push((name, weight.detach()) for name, weight in self._draft.model.named_parameters())
                self._pushed = step
            written = self._engine.write(asked, self._sampling, self._max_new_tokens, seeds)
        return [
            as_example(name, ids, generation, Provenance.DRAFT)
            for (name, ids, _), generation in zip(chosen, written, strict=True)
        ]
