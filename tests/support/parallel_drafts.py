"""Tiny parallel drafts: random ones, and one that was taught to guess several tokens of a target's text."""

from __future__ import annotations

import functools

import torch
from tiny_models import make_model

from specdistill.decoding import Sampling, generate_plain
from specdistill.decoding.parallel_draft import ParallelDrafting
from specdistill.files import parallel_drafting
from specdistill.models import LanguageModel

MASK = 66
"""Beyond the 65 ids of the tiny tokenizer; the models' 72 rows of embedding hold it."""
PROMPTS = [[5 + (7 * row + 3 * place) % 60 for place in range(1 + 5 * row % 13)] for row in range(24)]
ANSWER = 36


def make_parallel(family: str = "llama", *, mask_id: int = MASK, trained: int | None = None, **settings):
    """A random model that drafts in one pass."""
    model = make_model(family, **{"vocab_size": 72} | settings)
    parallel_drafting.ParallelDrafting(mask_id, trained).write_to(model.config)
    return model


@functools.cache
def taught_pair(depths: int = 5, steps: int = 60) -> tuple[LanguageModel, LanguageModel]:
    """A target, and a draft of two layers that learned its greedy text behind up to `depths` - 1 mask tokens."""
    target, draft = make_model(layers=3), make_parallel(layers=2, seed=3, scale=1.0, trained=depths)
    inputs, rows, places, labels = [], [], [], []
    for prompt in PROMPTS[:12]:
        sampling = Sampling(temperature=0.0)
        answer = generate_plain(target, [prompt], sampling=sampling, max_new_tokens=ANSWER, seeds=[0])[0].token_ids
        for start in range(1, len(answer) - depths, 2):
            text = prompt + answer[:start]
            inputs.append(text + [MASK] * (depths - 1))
            for depth in range(depths):
                rows.append(len(inputs) - 1)
                places.append(len(text) - 1 + depth)
                labels.append(answer[start + depth])
    longest = max(map(len, inputs))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in inputs])
    optimiser = torch.optim.Adam(draft.model.parameters(), 5e-3)
    for _ in range(steps):
        hidden = draft.hidden_states(ids)[rows, places]
        logits = torch.nn.functional.linear(hidden, draft.head_weight)
        torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()
        optimiser.step()
        optimiser.zero_grad()
    return target, draft


def recorded_proposals(monkeypatch) -> list[tuple[list[list[int]], list[int], list[list[int]]]]:
    """Every call of `propose`, as it comes: texts, limits and each row's proposed ids."""
    calls = []
    real = ParallelDrafting.propose

    def propose(self, texts, limits, **settings):
        proposal, counts = real(self, texts, limits, **settings)
        ids = [part.tolist() for part in proposal.token_ids.split(counts)]
        calls.append(([list(text) for text in texts], list(limits), ids))
        return proposal, counts

    monkeypatch.setattr(ParallelDrafting, "propose", propose)
    return calls


@torch.no_grad()
def guesses(draft: LanguageModel, text: list[int], count: int) -> torch.Tensor:
    """Logits of the tokens that a draft guesses behind a text, [count, vocab], from a plain pass without a cache."""
    assert draft.parallel is not None
    ids = text + [draft.parallel.mask_id] * (count - 1)
    return draft.logits(draft.hidden_states(torch.tensor([ids]))[0, len(text) - 1 :])
