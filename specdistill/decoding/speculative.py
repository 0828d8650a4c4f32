"""The exact speculative decoder: the draft proposes tokens, and the target checks several of them in one pass.

A round does this for every row:

    1. The draft (see `draft_kinds`) proposes up to `num_draft_tokens` tokens.
    2. The target reads the last emitted token and all proposals in one pass.
    3. `verify` keeps a prefix of the proposals and adds one token.
    4. Both caches roll back to the tokens that were kept.

Rows keep different numbers of tokens, so each row of the caches has its own length.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from specdistill.decoding.draft_kinds import DraftKind
from specdistill.decoding.draft_length import DraftLength, FixedLength
from specdistill.decoding.drafting import Proposal, flatten, unflatten
from specdistill.decoding.generation import Generation, OnTokens, Round, check_lengths
from specdistill.decoding.guidance import Guidance
from specdistill.decoding.guided_model import cached_model
from specdistill.decoding.parallel_draft import draft_of
from specdistill.decoding.proof import prove
from specdistill.decoding.sampling import Keys, Sampling, draw, refuse_undefined
from specdistill.decoding.stopping import Stopping
from specdistill.decoding.transfers import read_back, to_device
from specdistill.errors import ConfigError
from specdistill.models import LanguageModel
from specdistill_kernels import Verified, verify


class Acceptance(Protocol):
    """Decides which proposals to keep; see `ExactAcceptance` and, for distillation, SKD's membership test."""

    @property
    def always_adds_token(self) -> bool:
        """Whether a row whose proposals were all kept gets one more token from the target."""
        ...

    def __call__(self, target_logits: Tensor, proposal: Proposal, keys: Keys) -> Verified:
        """Checks one round.

        Args:
            target_logits: [sum of counts + batch, vocab]: one row per proposal and one more for each row's next token.
            proposal: The draft's tokens.
            keys: Randomness of each row.

        Returns:
            Accepted tokens and the next token of each row; see `specdistill_kernels.verify`.
        """
        ...


@dataclass(frozen=True)
class ExactAcceptance:
    """Keeps the target's distribution exactly, under every rule except `lenient`."""

    sampling: Sampling
    """Temperature and filters of the target."""
    rule: str
    """Acceptance rule, as in `SpeculativeDecoder`."""
    lenience: float = 1.0
    """Lenience of the lossy rule `lenient`."""
    always_adds_token: bool = True

    def __call__(self, target_logits: Tensor, proposal: Proposal, keys: Keys) -> Verified:
        return verify(
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


class SpeculativeDecoder:
    """Generates with a target and a draft, a batch at a time.

    Args:
        target: The model whose distribution the output follows.
        draft: Proposes tokens: a model with the target's vocabulary, which drafts in one pass if it is a parallel draft
            (`files.parallel_drafting`), or another kind of draft.
        num_draft_tokens: Tokens proposed per verification (gamma), or a `DraftLength` that decides before each round.
        sampling: Temperature and filters, the same for target and draft.
        rule: `greedy` at temperature 0. Above it `sampled`, `block` (exact too, with at least as many accepted tokens
            in expectation), `argmax_draft`, or the lossy `lenient`. None picks `greedy`, `sampled`, or for a draft
            that only copies `argmax_draft`.
        lenience: In (0, 1], for the rule `lenient`. Below 1 the output does not follow the target's distribution.
        acceptance: Replaces the verification, as speculative KD does. `rule` then decides only how to draft.
        guidance: Classifier-free guidance of the target: the output follows the guided distribution. Each pass of the
            target then reads twice as many rows; the draft knows nothing of it.

    Raises:
        ConfigError: The number of draft tokens is below 1, lenience is out of range, or the rule does not go with the
            temperature.
        ModelError: A model can't be rolled back (see `proof`).
    """

    def __init__(
        self,
        target: LanguageModel,
        draft: LanguageModel | DraftKind,
        *,
        num_draft_tokens: int | DraftLength,
        sampling: Sampling,
        rule: str | None = None,
        lenience: float = 1.0,
        acceptance: Acceptance | None = None,
        guidance: Guidance | None = None,
    ) -> None:
        kind = draft_of(draft) if isinstance(draft, LanguageModel) else draft
        rule = rule or ("greedy" if sampling.greedy else "argmax_draft" if kind.is_point_mass else "sampled")
        if (rule == "greedy") != sampling.greedy:
            remedy = "use greedy" if sampling.greedy else "greedy needs temperature 0"
            raise ConfigError(f"the rule {rule!r} does not go with temperature {sampling.temperature}; {remedy}")
        if not 0 < lenience <= 1:
            raise ConfigError(f"--lenience must be in (0, 1], got {lenience}")
        prove(target).require_rollback(target.name)
        kind.require_ready()
        self.target, self.draft, self.guidance = target, kind, guidance
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
        target_prompts: list[list[int]] | None = None,
    ) -> list[Generation]:
        """Generates one answer per prompt, all prompts in one batch. Rows leave the batch when their answers end.

        Args:
            prompts: Token ids of each prompt.
            max_new_tokens: Limit per answer.
            seeds: One per prompt. A row's random numbers depend on its own seed only.
            stop_strings: An answer also ends with the token that completes one of these.
            on_tokens: Called with the tokens that a round adds to a row, for streaming and progress.
            keep_hidden: Whether to fill `Generation.target_hidden`, at no extra pass of the target.
            target_prompts: The prompts as the target sees them, where it sees others than the draft (context
                distillation); None shows both the same.

        Returns:
            Generations in the order of the prompts.

        Raises:
            DataError: A prompt is empty, or does not fit the context of one of the models.
        """
        target_prompts = prompts if target_prompts is None else target_prompts
        check_lengths(target_prompts, max_new_tokens, self.target)
        if self.guidance is not None:
            check_lengths([list(self.guidance.negative_ids)], max_new_tokens, self.target)
        start = time.perf_counter()
        with self.target.generating(), self.draft.generating():
            stopping = Stopping.of(self.target, max_new_tokens, stop_strings)
            batch = _Batch(self, prompts, target_prompts, stopping, seeds, on_tokens, keep_hidden, start)
            while batch.alive:
                batch.round()
        for result in batch.results:
            result.seconds = time.perf_counter() - start
            result.model_seconds = batch.target.seconds + batch.draft.seconds
            result.target_calls = batch.target.calls
        return batch.results


class _Batch:
    """Rows of one `generate` call whose answers still grow."""

    def __init__(
        self,
        decoder: SpeculativeDecoder,
        prompts: list[list[int]],
        target_prompts: list[list[int]],
        stopping: Stopping,
        seeds: list[int],
        on_tokens: OnTokens | None,
        keep_hidden: bool,
        start: float,
    ) -> None:
        self.decoder, self.stopping, self.on_tokens = decoder, stopping, on_tokens
        self.keep_hidden = keep_hidden
        room = stopping.max_new_tokens + decoder.length.max_tokens + 1
        longest = max(map(len, target_prompts)) + room
        self.target = cached_model(decoder.target, len(prompts), longest, decoder.guidance)
        self.draft = decoder.draft.begin(prompts, stopping.max_new_tokens, room, decoder.draft_sampling, self.target)
        self.seeds = to_device(seeds, decoder.target.device)
        """Seeds of the rows that are alive."""
        self.results = [Generation() for _ in prompts]
        self.alive = list(range(len(prompts)))
        """Index of the prompt that each row answers."""
        self.prompts, self.target_prompts = prompts, target_prompts
        hidden = self.target.read(target_prompts)
        if decoder.acceptance.always_adds_token:
            logits = decoder.target.to_vocabulary(self.target.own_logits(hidden))
            (first,) = read_back(draw(logits, decoder.sampling, self._keys()))
            refuse_undefined(first)
            for row, (result, token) in enumerate(zip(self.results, first, strict=True)):
                self._emit(row, [token], 0)
                if keep_hidden:
                    result.target_hidden.append(hidden[row][None].clone())
                result.first_token_seconds = time.perf_counter() - start
        else:
            # The draft proposes the first token too, so the first round starts from the prompt's last token.
            self.target.advance([-1] * len(prompts))
        self._drop_finished()

    def round(self) -> None:
        """Drafts, verifies and rolls back once."""
        decoder, keys = self.decoder, self._keys()
        texts = self._texts()
        limit = decoder.length.limit(self.draft.unread(texts))
        # If verification always adds a token, the last token of an answer need not be drafted.
        reserved = 1 if decoder.acceptance.always_adds_token else 0
        wanted = [self.stopping.max_new_tokens - len(self.results[row].token_ids) - reserved for row in self.alive]
        limits = [min(limit, count) for count in wanted]
        proposal, counts = self.draft.propose(texts, limits, keys=keys, length=decoder.length)
        hidden = self._read_proposals(proposal.token_ids, counts)
        logits = decoder.target.to_vocabulary(self.target.own_logits(hidden))
        verified = decoder.acceptance(logits, proposal, keys)
        # The only transfer of a round. The host needs the tokens, because it sees where answers end.
        flat, kept, added = read_back(proposal.token_ids, verified.num_accepted, verified.next_token)
        refuse_undefined(flat if not decoder.acceptance.always_adds_token else flat + added)
        tokens = iter(flat)
        proposed = [list(itertools.islice(tokens, count)) for count in counts]
        self._commit(proposed, kept, added, hidden.split([count + 1 for count in counts]))

    def _read_proposals(self, token_ids: Tensor, counts: list[int]) -> Tensor:
        """Runs the target on each row's last emitted token and its proposals, which lie one row after the other.

        Returns:
            Hidden states [sum of counts + batch, hidden], one row after the other.
        """
        last_emitted = [[(self.results[row].token_ids or self.target_prompts[row])[-1]] for row in self.alive]
        # Undefined proposals are -1, which no embedding has; they are refused when they are read.
        padded = (to_device(last_emitted, self.seeds.device), unflatten(token_ids, counts).clamp(min=0))
        return flatten(self.target.forward(torch.cat(padded, 1)), [count + 1 for count in counts])

    def _keys(self) -> Keys:
        return Keys(self.seeds, to_device([len(self.results[row].token_ids) for row in self.alive], self.seeds.device))

    def _texts(self) -> list[list[int]]:
        """Each row's prompt, as the draft sees it, and answer so far."""
        return [self.prompts[row] + self.results[row].token_ids for row in self.alive]

    def _commit(self, proposed: list[list[int]], kept: list[int], added: list[int], hidden: Sequence[Tensor]) -> None:
        """Emits the kept tokens, rolls both caches back and drops rows that ended."""
        for row, ids, count, next_token, states in zip(self.alive, proposed, kept, added, hidden, strict=True):
            emitted = self._emit(row, ids[:count] + ([next_token] if next_token >= 0 else []), count)
            result = self.results[row]
            if self.keep_hidden:
                # Copied, because a slice would keep the pass of the whole batch in memory.
                result.target_hidden.append(states[:emitted].clone())
            # Tokens drafted after an accepted end of the answer could not be kept, so they don't count as proposed.
            ended_in_draft = result.finish_reason in ("eos", "stop") and emitted <= count
            possible = emitted if ended_in_draft else len(ids)
            rejected = ids[count] if count < min(emitted, len(ids)) else None
            result.rounds.append(Round(possible, min(count, emitted), emitted, rejected))
        self.decoder.length.observe([len(ids) for ids in proposed], kept)
        # Both keep all but the last emitted token, which the next round reads.
        new = [len(self.results[row].token_ids) - 1 for row in self.alive]
        self.target.set_lengths([len(self.target_prompts[row]) + n for row, n in zip(self.alive, new, strict=True)])
        self.draft.commit(self._texts())
        self._drop_finished()

    def _emit(self, row: int, token_ids: list[int], num_from_draft: int) -> int:
        """Adds tokens to an answer; returns how many were added before it ended."""
        emitted = self.results[row].emit(token_ids, num_from_draft, self.stopping)
        if self.on_tokens is not None and emitted:
            self.on_tokens(row, emitted)
        return len(emitted)

    def _drop_finished(self) -> None:
        unfinished = [index for index, row in enumerate(self.alive) if self.results[row].finish_reason is None]
        if len(unfinished) == len(self.alive):
            return
        self.alive = [self.alive[index] for index in unfinished]
        if unfinished:
            self.seeds = self.seeds[to_device(unfinished, self.seeds.device)]
            self.target.select(unfinished)
            self.draft.select(unfinished)
