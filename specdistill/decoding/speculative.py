"""The exact speculative decoder: the draft proposes, the target checks several tokens in one pass.

The life of a round, for each row: feed the draft what it has not seen yet and let it propose `num_draft_tokens` tokens;
feed the target the last emitted token and all proposals at once; `verify` keeps a prefix and adds one token; roll both
caches back to what was kept. Rows accept different counts, so each row of the caches has its own length.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from specdistill.decoding.autoregressive import prefill
from specdistill.decoding.cached_model import CachedModel
from specdistill.decoding.draft_length import DraftLength, FixedLength
from specdistill.decoding.generation import Generation, OnTokens, Round, check_lengths
from specdistill.decoding.sampling import Keys, Sampling, pick, process, refuse_undefined
from specdistill.decoding.stopping import Stopping
from specdistill.errors import ConfigError
from specdistill.models import LanguageModel
from specdistill_kernels import Verified, verify


@dataclass(frozen=True)
class Proposal:
    """What one round of drafting produced, flat over rows as engines hold it."""

    token_ids: Tensor
    """int64 [sum of counts]."""
    cumulative: Tensor
    """int64 [batch], running sum of the counts."""
    logits: Tensor | None
    """[sum of counts, vocab] before temperature; None at temperature 0 or for argmax drafts."""


class Acceptance(Protocol):
    """Decides which proposals stay; see `ExactAcceptance` and, for distillation, SKD's membership test."""

    @property
    def always_adds_token(self) -> bool:
        """Whether a row whose proposals were all kept gets one more token from the target."""
        ...

    def __call__(self, target_logits: Tensor, proposal: Proposal, keys: Keys) -> Verified: ...


@dataclass(frozen=True)
class ExactAcceptance:
    """Keeps the target's distribution exactly, under every rule but `lenient`."""

    sampling: Sampling
    rule: str
    lenience: float = 1.0
    """Of the lossy rule `lenient`."""
    always_adds_token: bool = True

    def __call__(self, target_logits: Tensor, proposal: Proposal, keys: Keys) -> Verified:
        verified = verify(
            target_logits,
            proposal.token_ids,
            proposal.cumulative,
            proposal.logits,
            rule=self.rule,
            seeds=keys.seeds,
            positions=keys.emitted,
            lenience=self.lenience,
            **self.sampling.settings,
        )
        refuse_undefined(verified.next_token)
        return verified


class SpeculativeDecoder:
    """Generates with a draft's help, a batch at a time.

    Args:
        target: The model whose output it is.
        draft: Proposes tokens; of the same vocabulary. A trimmed head proposes its kept ids only.
        num_draft_tokens: Tokens proposed per verification (gamma), or a `DraftLength` that decides round by round.
        sampling: Temperature and filters of the target, and alike of the draft.
        rule: `greedy` at temperature 0; above it `sampled`, `block` (exact too, and never shorter in expectation),
            `argmax_draft`, or the lossy `lenient`. None picks `greedy` or `sampled`.
        lenience: In (0, 1], of the rule `lenient`; below 1 the output does not follow the target.
        acceptance: Replaces the verification (speculative KD uses this); `rule` then says only how to draft.

    Raises:
        ConfigError: A number of draft tokens below 1, a lenience out of range, or a rule that does not go with the
            temperature.
    """

    def __init__(
        self,
        target: LanguageModel,
        draft: LanguageModel,
        *,
        num_draft_tokens: int | DraftLength,
        sampling: Sampling,
        rule: str | None = None,
        lenience: float = 1.0,
        acceptance: Acceptance | None = None,
    ) -> None:
        rule = rule or ("greedy" if sampling.greedy else "sampled")
        if (rule == "greedy") != sampling.greedy:
            raise ConfigError(f"the rule {rule!r} does not go with temperature {sampling.temperature}")
        if not 0 < lenience <= 1:
            raise ConfigError(f"--lenience must be in (0, 1], got {lenience}")
        self.target, self.draft = target, draft
        self.length = FixedLength(num_draft_tokens) if isinstance(num_draft_tokens, int) else num_draft_tokens
        self.sampling = sampling
        self.draft_sampling = Sampling(temperature=0.0) if rule == "argmax_draft" else sampling
        self.acceptance = acceptance or ExactAcceptance(sampling, rule, lenience)

    def generate(
        self,
        prompts: list[list[int]],
        *,
        max_new_tokens: int,
        seeds: list[int],
        stop_strings: tuple[str, ...] = (),
        on_tokens: OnTokens | None = None,
        keep_hidden: bool = False,
    ) -> list[Generation]:
        """Generates one answer per prompt, all prompts in one batch; rows leave the batch as they end.

        Args:
            prompts: Token ids of each prompt.
            max_new_tokens: Limit per answer.
            seeds: One per prompt; a row's randomness is its own.
            stop_strings: An answer also ends with the token that completes one of these.
            on_tokens: Called for each run of tokens that a round adds to a row, for streaming and progress.
            keep_hidden: Fill `Generation.target_hidden` from the verifications, which have computed them anyway.

        Returns:
            Generations in the order of the prompts.

        Raises:
            DataError: A prompt is empty or does not fit either model's context.
        """
        check_lengths(prompts, max_new_tokens, self.target, self.draft)
        start = time.perf_counter()
        with self.target.generating(), self.draft.generating():
            stopping = Stopping.of(self.target, max_new_tokens, stop_strings)
            batch = _Batch(self, prompts, stopping, seeds, on_tokens, keep_hidden, start)
            while batch.alive:
                batch.round()
        for result in batch.results:
            result.seconds = time.perf_counter() - start
            result.model_seconds = batch.target.seconds + batch.draft.seconds
            result.target_calls = batch.target.calls
        return batch.results


class _Batch:
    """The rows of one `generate` call that are still going."""

    def __init__(
        self,
        decoder: SpeculativeDecoder,
        prompts: list[list[int]],
        stopping: Stopping,
        seeds: list[int],
        on_tokens: OnTokens | None,
        keep_hidden: bool,
        start: float,
    ) -> None:
        self.decoder, self.stopping, self.on_tokens = decoder, stopping, on_tokens
        self.keep_hidden = keep_hidden
        capacity = max(map(len, prompts)) + stopping.max_new_tokens + decoder.length.max_tokens + 1
        self.target = CachedModel(decoder.target, len(prompts), capacity)
        self.draft = CachedModel(decoder.draft, len(prompts), capacity)
        self.seeds = torch.tensor(seeds, device=decoder.target.device)
        self.results = [Generation() for _ in prompts]
        self.alive = list(range(len(prompts)))
        self.prompts = prompts
        hidden = prefill(self.target, prompts)
        if decoder.acceptance.always_adds_token:
            logits = decoder.target.to_vocabulary(self.target.own_logits(hidden))
            first = pick(logits, decoder.sampling, self._keys()).tolist()
            for row, (result, token) in enumerate(zip(self.results, first, strict=True)):
                self._emit(row, [token], 0)
                if keep_hidden:
                    result.target_hidden.append(hidden[row][None].clone())
                result.first_token_seconds = time.perf_counter() - start
        else:
            # The draft is to propose the first token too: the round starts from the prompt's last token.
            self.target.advance([-1] * len(prompts))
        # The draft reads the prompt when it first proposes: a policy that never drafts doesn't pay for it.
        self._drop_finished()

    def round(self) -> None:
        """Drafts, verifies and rolls back once."""
        decoder = self.decoder
        budget = [self.stopping.max_new_tokens - len(self.results[row].token_ids) for row in self.alive]
        # The last token of a row comes from the target anyway where verification always adds one.
        spare = 1 if decoder.acceptance.always_adds_token else 0
        unread, keys = self._unread(), self._keys()
        limit = decoder.length.limit(max(map(len, unread)))
        proposal, counts = self._propose([min(limit, left - spare) for left in budget], unread, keys)
        proposed = [chunk.tolist() for chunk in proposal.token_ids.split(counts)]
        pending = [(self.results[row].token_ids or self.prompts[row])[-1] for row in self.alive]
        widest = max(counts)
        fed = [[token, *ids, *[0] * (widest - len(ids))] for token, ids in zip(pending, proposed, strict=True)]
        hidden = self.target.forward(torch.tensor(fed, device=decoder.target.device))
        real = [row[: count + 1] for row, count in zip(hidden, counts, strict=True)]
        logits = decoder.target.to_vocabulary(self.target.own_logits(torch.cat(real)))
        verified = decoder.acceptance(logits, proposal, keys)
        self._commit(proposed, verified, real)

    def _keys(self) -> Keys:
        emitted = [len(self.results[row].token_ids) for row in self.alive]
        return Keys(self.seeds[self.alive], torch.tensor(emitted, device=self.seeds.device))

    def _unread(self) -> list[list[int]]:
        """What the draft has not read of each row yet."""
        sequences = [self.prompts[row] + self.results[row].token_ids for row in self.alive]
        return [ids[length:] for ids, length in zip(sequences, self.draft.lengths, strict=True)]

    def _propose(self, counts: list[int], unread: list[list[int]], keys: Keys) -> tuple[Proposal, list[int]]:
        """Lets the draft propose up to `counts` tokens per row; the second value is how many each row proposed."""
        draft, sampling, device = self.decoder.draft, self.decoder.draft_sampling, self.decoder.draft.device
        steps: list[Tensor] = []
        step_logits: list[Tensor] = []
        keep_logits = not sampling.greedy
        feed = torch.tensor([ids + [0] * (max(map(len, unread)) - len(ids)) for ids in unread], device=device)
        real = list(map(len, unread))
        confidence = [1.0] * len(counts)
        for step in range(max(counts)):
            # Rows that want no more tokens must not draw: a row's randomness may not depend on who shares its batch.
            drawing = [index for index, count in enumerate(counts) if count > step]
            if not drawing:
                break
            hidden = self.draft.forward(feed)
            self.draft.advance(real)
            last = torch.tensor(real, device=device) - 1
            hidden = hidden[torch.arange(len(real), device=device), last]
            logits = self.draft.own_logits(hidden)
            picked = pick(logits[drawing], sampling, keys.of_rows(drawing), from_draft=True, ahead=step)
            tokens = torch.zeros(len(counts), dtype=torch.int64, device=device)
            tokens[drawing] = draft.to_token_ids(picked)
            steps.append(tokens)
            if keep_logits:
                step_logits.append(draft.to_vocabulary(logits))
            if self.decoder.length.watches_confidence:
                chances = process(logits[drawing], sampling).softmax(-1).gather(1, picked[:, None])[:, 0].tolist()
                for index, chance in zip(drawing, chances, strict=True):
                    confidence[index] *= chance
                    if not self.decoder.length.goes_on(confidence[index]):
                        counts[index] = step + 1
            feed, real = tokens[:, None], [1] * len(real)
        cumulative = torch.tensor(counts, device=device).cumsum(0)
        if not steps:
            none = torch.empty(0, draft.vocab_size, device=device) if keep_logits else None
            return Proposal(torch.empty(0, dtype=torch.int64, device=device), cumulative, none), counts
        chosen = torch.stack(steps, dim=1)
        ids = torch.cat([row[:count] for row, count in zip(chosen, counts, strict=True)])
        logits = None
        if keep_logits:
            stacked = torch.stack(step_logits, dim=1)
            logits = torch.cat([row[:count] for row, count in zip(stacked, counts, strict=True)])
        return Proposal(ids, cumulative, logits), counts

    def _commit(self, proposed: list[list[int]], verified: Verified, hidden: list[Tensor]) -> None:
        """Emits what was kept, rolls both caches back, drops rows that ended."""
        kept = verified.num_accepted.tolist()
        added = verified.next_token.tolist()
        for row, ids, count, extra, states in zip(self.alive, proposed, kept, added, hidden, strict=True):
            taken = self._emit(row, ids[:count] + ([extra] if extra >= 0 else []), count)
            result = self.results[row]
            if self.keep_hidden:
                # A copy: the slice would keep the whole batch's pass alive.
                result.target_hidden.append(states[:taken].clone())
            # Tokens that were drafted behind an accepted end of the answer were never in play.
            in_play = taken if result.finish_reason in ("eos", "stop") and taken <= count else len(ids)
            result.rounds.append(Round(proposed=in_play, accepted=min(count, taken), emitted=taken))
        self.decoder.length.observe([len(ids) for ids in proposed], kept)
        # Both caches hold everything but the last emitted token, which the next round feeds; the draft may lack more.
        known = [len(self.prompts[row]) + len(self.results[row].token_ids) - 1 for row in self.alive]
        self.target.set_lengths(known)
        self.draft.set_lengths([min(a, b) for a, b in zip(known, self.draft.lengths, strict=True)])
        self._drop_finished()

    def _emit(self, row: int, token_ids: list[int], num_from_draft: int) -> int:
        taken = self.results[row].emit(token_ids, num_from_draft, self.stopping)
        if self.on_tokens is not None and taken:
            self.on_tokens(row, taken)
        return len(taken)

    def _drop_finished(self) -> None:
        going = [index for index, row in enumerate(self.alive) if self.results[row].finish_reason is None]
        if len(going) == len(self.alive):
            return
        self.alive = [self.alive[index] for index in going]
        if going:
            self.target.select(going)
            self.draft.select(going)
