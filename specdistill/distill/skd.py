"""Speculative knowledge distillation: draft and target write an answer together.

The draft proposes tokens; the target checks them in one pass and keeps each one that is in its top K. The first one
outside is replaced by the target's own sample, and what came after it is dropped. K -> vocabulary is on-policy
distillation; K = 1 with a greedy target gives the target's own answers. The usual min(1, p/q) test would give the
target's samples whatever the draft says; membership keeps the draft's style and removes only what the target rules out.

Source: Xu et al. 2024 (arXiv 2410.11325), Algorithm 1. Unlike the published code this tests exactly the token that it
emits, and on the raw logits: after top-p most entries are -inf and a top K of them would be arbitrary.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import torch
from torch import Tensor

from specdistill.data.batch import Provenance, Sequence
from specdistill.data.prompts import Prompt
from specdistill.decoding import Sampling, SpeculativeDecoder
from specdistill.decoding.sampling import Keys
from specdistill.decoding.speculative import Proposal
from specdistill.distill.rollouts import PromptTurns
from specdistill.models import ModelPair
from specdistill_kernels import Verified, topk_membership


@dataclass(frozen=True)
class TopKAcceptance:
    """Keeps draft tokens that are among the target's K most likely; adds a token only where one was replaced."""

    top_k: int
    sampling: Sampling
    """Of the target's replacements."""
    always_adds_token: bool = False

    def __call__(self, target_logits: Tensor, proposal: Proposal, keys: Keys) -> Verified:
        """See `verify` for the shapes; next_token is -1 where every proposal of the row was kept."""
        ends = proposal.cumulative.tolist()
        starts = [0, *ends[:-1]]
        # Row b has one more target row than proposals: its first one lies b rows further than its first proposal.
        checked = torch.cat(
            [torch.arange(start + row, end + row) for row, (start, end) in enumerate(zip(starts, ends, strict=True))]
        ).to(target_logits.device)
        inside = topk_membership(target_logits[checked], proposal.token_ids, self.top_k).tolist()
        accepted, following = [], []
        for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
            kept = next((index for index in range(end - start) if not inside[start + index]), end - start)
            accepted.append(kept)
            if kept == end - start:
                following.append(-1)
                continue
            logits = target_logits[start + row + kept][None]
            following.append(int(self.sampling.pick(logits, keys.of_rows([row]), ahead=kept)))
        device = target_logits.device
        return Verified(torch.tensor(accepted, device=device), torch.tensor(following, device=device))


class Skd:
    """A source of sequences that draft and target wrote together."""

    def __init__(
        self,
        pair: ModelPair,
        prompts: Many[Prompt],
        encoded: Many[list[int]],
        sampling: Sampling,
        *,
        top_k: int,
        num_draft_tokens: int,
        max_new_tokens: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self._decoder = SpeculativeDecoder(
            pair.target,
            pair.draft,
            num_draft_tokens=num_draft_tokens,
            sampling=sampling,
            acceptance=TopKAcceptance(top_k, sampling),
        )
        self._encoded = {prompt.id: ids for prompt, ids in zip(prompts, encoded, strict=True)}
        self._max_new_tokens = max_new_tokens
        self._turns = PromptTurns([prompt.id for prompt in prompts], batch_size, seed)

    def next_batch(self, step: int) -> list[Sequence]:
        chosen = self._turns.next()
        written = self._decoder.generate(
            [self._encoded[name] for name, _ in chosen],
            max_new_tokens=self._max_new_tokens,
            seeds=[seed for _, seed in chosen],
        )
        return [
            Sequence(
                name,
                tuple(self._encoded[name]),
                tuple(generation.token_ids),
                tuple(int(Provenance.DRAFT if own else Provenance.TARGET) for own in generation.from_draft),
            )
            for (name, _), generation in zip(chosen, written, strict=True)
        ]
