"""Speculative knowledge distillation: draft and target write an answer together.

The draft proposes tokens; the target checks them in one pass and keeps each one that is in its top K. The first one
outside is replaced by the target's own sample, under a sampling of its own, and what came after it is dropped. K ->
vocabulary is on-policy distillation; K = 1 with a greedy target gives the target's own answers. The usual min(1, p/q)
test would give the target's samples whatever the draft says; membership keeps the draft's style and removes only what
the target rules out.

Source: Xu et al. 2024 (arXiv 2410.11325), Algorithm 1. Unlike the published code this tests exactly the token that it
emits, and on the raw logits: after top-p most entries are -inf and a top K of them would be arbitrary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from specdistill.data.batch import Example, Provenance
from specdistill.data.prompts import Prompt
from specdistill.data.target_context import TargetView
from specdistill.decoding import Generation, Sampling, SpeculativeDecoder
from specdistill.decoding.sampling import Keys, pick
from specdistill.decoding.speculative import Proposal
from specdistill.distill.processes.ranks import ALONE, Ranks
from specdistill.distill.sequences.measurements import Measurements
from specdistill.distill.sequences.pool import PromptSampler, SampledSource
from specdistill.models import ModelPair
from specdistill_kernels import Verified, topk_membership

_NEARLY_ALL = 0.9
"""Share of the draft's tokens that are replaced, from which on the text is the target's."""


@dataclass(frozen=True)
class TopKAcceptance:
    """Keeps draft tokens that are among the target's K most likely; adds a token only where one was replaced."""

    top_k: int
    sampling: Sampling
    """How the target samples its replacements."""
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
            following.append(int(pick(logits, self.sampling, keys.of_rows([row]), ahead=kept)))
        device = target_logits.device
        return Verified(torch.tensor(accepted, device=device), torch.tensor(following, device=device))


class Skd(SampledSource):
    """A source of sequences that draft and target wrote together, each behind the prompt as it sees it.

    Each carries the target's hidden states of its answer: the check has computed them, so training on it needs no
    second pass of the target.

    Args:
        pair: Target and draft.
        prompts, encoded: What they answer.
        sampling: How the draft writes.
        top_k: Rank up to which its tokens stay.
        num_draft_tokens: Tokens that it writes between two checks.
        max_new_tokens: Limit per answer.
        batch_size: Answers per step, of all ranks together.
        seed: Random seed of the prompts' order and of the sampling.
        ranks: The processes that train together.
        target_sampling: How the target samples its replacements; None takes `sampling`.
        view: The prompts as the target sees them.
        say: Where the warning goes that nearly all tokens are replaced.
    """

    def __init__(
        self,
        pair: ModelPair,
        prompts: Sequence[Prompt],
        encoded: Sequence[list[int]],
        sampling: Sampling,
        *,
        top_k: int,
        num_draft_tokens: int,
        max_new_tokens: int,
        batch_size: int,
        seed: int,
        ranks: Ranks = ALONE,
        target_sampling: Sampling | None = None,
        view: TargetView | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._view, self._say = view or TargetView(), say
        self._decoder = SpeculativeDecoder(
            pair.target,
            pair.draft,
            num_draft_tokens=num_draft_tokens,
            sampling=sampling,
            acceptance=TopKAcceptance(top_k, target_sampling or sampling),
        )
        self._max_new_tokens = max_new_tokens
        self._sampler = self._prompts = PromptSampler(prompts, encoded, batch_size, seed, ranks)
        self._rejections = Rejections(num_draft_tokens)

    def next_batch(self, step: int) -> list[Example]:
        chosen = self._prompts.next_prompts()
        if not chosen:
            return []
        written = self._decoder.generate(
            [ids for _, ids, _ in chosen],
            max_new_tokens=self._max_new_tokens,
            seeds=[seed for _, _, seed in chosen],
            keep_hidden=True,
            target_prompts=[self._view.ids_of(name, ids) for name, ids, _ in chosen],
        )
        for generation in written:
            self._rejections.count(generation)
        return [
            Example(
                name,
                tuple(ids),
                tuple(generation.token_ids),
                tuple(int(Provenance.DRAFT if own else Provenance.TARGET) for own in generation.from_draft),
                torch.cat(generation.target_hidden),
            )
            for (name, ids, _), generation in zip(chosen, written, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        counts = {"tested": list(self._rejections.tested), "rejected": list(self._rejections.rejected)}
        return super().state_dict() | {"rejections": counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        # Checkpoints of older versions were only written where nothing was counted.
        for name, counts in state.get("rejections", {}).items():
            setattr(self._rejections, name, list(counts))

    def measurements(self, *, reset: bool = False) -> Measurements:
        """skd_rejection_rate and skd_rejection_by_position since the last reset."""
        rates = self._rejections.rates()
        if reset:
            self._warn(self._rejections.rate)
            self._rejections = Rejections(len(self._rejections.tested))
        return rates

    def _warn(self, rate: float | None) -> None:
        """Says once that the text is the target's own, where it replaces nearly all."""
        if self._say is None or rate is None or rate <= _NEARLY_ALL:
            return
        self._say(
            f"warning: the target replaced {100 * rate:.0f} % of the draft's tokens, so that the text is nearly all "
            "the target's own; raise --skd-top-k to keep more of the draft's, or train it by --method distillspec first"
        )
        self._say = None


class Rejections:
    """Counts how often the target replaced a token, by the token's place in the draft's proposal."""

    def __init__(self, num_draft_tokens: int) -> None:
        self.tested = [0] * num_draft_tokens
        self.rejected = [0] * num_draft_tokens

    def count(self, generation: Generation) -> None:
        """Adds the rounds of an answer; tokens behind a replaced one were never tested."""
        for proposed, accepted, *_ in generation.rounds:
            for position in range(min(accepted + 1, proposed)):
                self.tested[position] += 1
            if accepted < proposed:
                self.rejected[accepted] += 1

    @property
    def rate(self) -> float | None:
        """Replaced / tested, in all; None where nothing was tested."""
        total = sum(self.tested)
        return sum(self.rejected) / total if total else None

    def rates(self) -> Measurements:
        """Replaced / tested, in all and by position; None where a position was never tested."""
        pairs = list(zip(self.rejected, self.tested, strict=True))
        return {
            "skd_rejection_rate": self.rate,
            "skd_rejection_by_position": [rejected / tested if tested else None for rejected, tested in pairs],
        }
