"""Random heads of tiny targets, and what one proposes when nothing is cached."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tiny_models import make_model

from specdistill.decoding import Sampling, SpeculativeDecoder, generate_plain
from specdistill.models import LanguageModel
from specdistill.models.eagle3 import AuxStates, Eagle3Head, head_from_target
from specdistill.models.eagle3.unrolled import Anchors, unrolled_states
from specdistill.models.head_draft import HeadModel, as_draft

GREEDY = Sampling(temperature=0.0)
IDS = [id_ for id_ in range(65) if id_ % 13 != 2]
"""Ids that a head proposes: most of them."""
PROMPTS = [[3, *range(5 + row, 5 + row + 1 + 3 * row % 11), 4] for row in range(8)]
"""Prompts of 3 to 12 tokens."""


def make_head(
    target: LanguageModel, ids: Sequence[int] = IDS, *, seed: int = 0, noise: float = 0.3, **settings
) -> HeadModel:
    """A head that is no copy of its target any more."""
    torch.manual_seed(seed)
    head = head_from_target(target, torch.tensor(list(ids)), **settings)
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.ndim == 2:
                parameter.add_(torch.randn_like(parameter) * noise * parameter.shape[1] ** -0.5)
    return as_draft(head, target, "tiny-head")


def taught_pair(layers: int = 7, steps: int = 30) -> tuple[LanguageModel, HeadModel]:
    """A target and a head that was taught most of its greedy answers, so that it is right now and then."""
    target = make_model(layers=layers)
    draft = make_head(target)
    teach(target, draft.head, PROMPTS[:6], steps)
    return target, draft


def teach(target: LanguageModel, head: Eagle3Head, prompts: list[list[int]], steps: int, rate: float = 5e-3) -> None:
    """Trains a head for three tokens of each round on a target's greedy answers."""
    written = generate_plain(target, prompts, sampling=GREEDY, max_new_tokens=24, seeds=[0] * len(prompts))
    texts = [prompt + answer.token_ids for prompt, answer in zip(prompts, written, strict=True)]
    longest = max(map(len, texts))
    ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts])
    read = states(target, head, ids)
    column = torch.full((target.vocab_size,), -100)
    column[head.draft_ids] = torch.arange(len(head.draft_ids))
    inside = torch.tensor([[place < len(text) for place in range(longest)] for text in texts])
    labels = column[ids].where(inside, -100)
    anchors = Anchors(torch.zeros(len(texts), dtype=torch.int64), torch.full((len(texts),), longest - 4))
    optimiser = torch.optim.Adam(head.parameters(), rate)
    for _ in range(steps):
        loss = torch.zeros(())
        for step, hidden in enumerate(unrolled_states(head, ids, read, anchors, 3)):
            wanted = labels[:, 2 + step : 2 + step + longest - 4]
            loss = loss + torch.nn.functional.cross_entropy(head.logits(hidden).flatten(0, 1), wanted.flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def states(target: LanguageModel, head: Eagle3Head, text: torch.Tensor) -> torch.Tensor:
    """The target's states [batch, length, 3 hidden] that the head reads."""
    with torch.no_grad(), AuxStates(target, head.aux_layers) as aux:
        target.hidden_states(text)
        return aux.take().clone()


@torch.no_grad()
def guesses(target: LanguageModel, draft: HeadModel, text: list[int], asked: int | list[int]) -> torch.Tensor:
    """Logits [tokens, kept ids] of a round behind a text, by plain passes: everything is read again for each token.

    Args:
        target, draft: The models.
        text: Everything before the round.
        asked: Number of tokens, each the likeliest; or the ids that were drawn.
    """
    head, found = draft.head, []
    ids = [-1] * asked if isinstance(asked, int) else asked
    tokens = torch.tensor([text])
    features = head.fuse(states(target, head, tokens))[:, :-1]
    following = tokens[:, 1:]
    for id_ in ids:
        hidden = head(following, features)
        found.append(head.logits(hidden[:, -1])[0])
        token = head.draft_ids[found[-1].argmax()] if id_ < 0 else torch.tensor(id_)
        # The row behind reads this guess, and what the head gave for the row before it.
        following = torch.cat([following, token[None, None]], 1)
        features = torch.cat([features, hidden[:, -1:]], 1)
    return torch.stack(found)


def decode(target, draft, length, sampling=GREEDY, prompts=PROMPTS, new=24, seeds=None, **settings):
    """Answers of our decoder."""
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=length, sampling=sampling, **settings)
    return decoder.generate(prompts, max_new_tokens=new, seeds=seeds or list(range(len(prompts))))


def plain(target, sampling=GREEDY, prompts=PROMPTS, new=24):
    """Plain answers of the target."""
    written = generate_plain(target, prompts, sampling=sampling, max_new_tokens=new, seeds=list(range(len(prompts))))
    return [answer.token_ids for answer in written]
