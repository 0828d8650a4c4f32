"""An engine behind HTTP, used as its users use it: streamed answers, several at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from specdistill.decoding import Generation, Sampling
from specdistill.errors import ServerAwayError, ServerError
from specdistill.models import LanguageModel
from specdistill.servers.client import ModelServer
from specdistill.servers.dialects import Piece, stream_dialect_of
from specdistill.serving.engine import Answered, OnTokens
from specdistill.serving.server_process import ServerProcess
from specdistill.serving.speculation import (
    Speculation,
    from_llama_timings,
    from_sglang_meta,
    from_vllm_metrics,
    total_of,
)

_TRIES = 3
"""A server that broke off is waited for and asked again this often; one that dies of a prompt would never end."""
_DYING = 3.0
"""Seconds that a server which broke off is given to be seen dead."""
_SETTLE, _MOST_SETTLING = 0.05, 2.0
"""Seconds between two reads of the counters, which must agree, and at most for all reads."""


class ServedEngine:
    """One server.

    Args:
        server: Client of the server.
        target: The target or its shell: tokenizer, vocabulary and stop ids.
        num_draft_tokens: Draft tokens that it was started with; 0 without a draft.
        process: Its process, where it was started here.
        say: Where waiting is announced.
        copies: Whether its method may propose nothing.
    """

    first_drafted = False

    def __init__(
        self,
        server: ModelServer,
        target: LanguageModel,
        num_draft_tokens: int,
        process: ServerProcess | None = None,
        say: Callable[[str], None] = lambda text: None,
        copies: bool = False,
    ) -> None:
        self._server, self._target, self._process, self._say = server, target, process, say
        self._num_draft_tokens, self._copies = num_draft_tokens, copies
        self._is_checked = num_draft_tokens > 0
        self._dialect = stream_dialect_of(server.owner)
        self.owner = server.owner.lower()
        self.version = self._version()
        self.counters = {
            "vllm": "vllm:spec_decode_* of /metrics",
            "llamacpp": "draft_n and draft_n_accepted of timings",
            "sglang": "spec_verify_ct of meta_info",
        }.get(self.owner, "none")

    def answer(
        self,
        prompts: list[list[int]],
        sampling: Sampling,
        max_new_tokens: int,
        seeds: list[int],
        on_tokens: OnTokens = lambda count: None,
    ) -> Answered:
        """See `Engine`. A server that breaks off is waited for, and the whole batch is asked again."""
        for tried in range(1, _TRIES + 1):
            try:
                return self._answer(prompts, sampling, max_new_tokens, seeds, on_tokens)
            except ServerAwayError as error:
                if self._process is not None:
                    self._process.check_alive(_DYING)
                if tried == _TRIES:
                    raise ServerError(f"{error}; it did so {_TRIES} times for one prompt") from error
                self._say(f"{error}; asking again")
                self._server.wait()
        raise AssertionError("the last try returns or raises")

    def close(self) -> None:
        """Drops connections, and stops the server where it was started here."""
        self._server.close()
        if self._process is not None:
            self._process.stop()

    def _answer(
        self, prompts: list[list[int]], sampling: Sampling, most: int, seeds: list[int], on_tokens: OnTokens
    ) -> Answered:
        before = self._totals() if self._num_draft_tokens else None
        start = time.perf_counter()
        with ThreadPoolExecutor(len(prompts)) as threads:
            jobs = zip(prompts, seeds, strict=True)
            streamed = list(
                threads.map(lambda job: self._stream(job[0], sampling, most, job[1], start, on_tokens), jobs)
            )
        seconds = time.perf_counter() - start
        for generation, _ in streamed:
            generation.seconds = seconds
        speculation = self._speculation(before, [counts for _, counts in streamed])
        return Answered([generation for generation, _ in streamed], speculation)

    def _stream(
        self, prompt: list[int], sampling: Sampling, most: int, seed: int, start: float, on_tokens: OnTokens
    ) -> tuple[Generation, dict[str, Any]]:
        body = self._dialect.stream_body(prompt, sampling, most, seed, sorted(self._target.eos_token_ids))
        if self._dialect.names_model:
            body["model"] = self._server.model
        generation, text, counts = Generation(), "", {}
        for event in self._server.stream(self._dialect.path, body):
            piece = self._piece(event, len(generation.token_ids))
            if (piece.ids or piece.text) and not generation.first_token_seconds:
                generation.first_token_seconds = time.perf_counter() - start
            generation.token_ids += piece.ids or []
            text += piece.text
            on_tokens(len(piece.ids) if piece.ids is not None else bool(piece.text))
            generation.finish_reason = piece.finish or generation.finish_reason
            counts = piece.counts or counts
        if generation.finish_reason is None:
            raise ServerAwayError(f"{self._server.url} broke off an answer after {len(generation.token_ids)} tokens")
        if text:
            # Some other split than the server's is possible, but both servers' texts are split alike.
            generation.token_ids = self._target.tokenizer(text, add_special_tokens=False)["input_ids"]
        self._check(generation)
        return generation, counts

    def _piece(self, event: dict[str, Any], known: int) -> Piece:
        try:
            return self._dialect.piece(event, known)
        except (AttributeError, KeyError, IndexError, TypeError, ValueError):
            raise ServerError(
                f"{self._server.url} streams {str(event)[:100]!r}, which holds no tokens; is it {self.owner or 'such'} "
                "of a recent version?"
            ) from None

    def _check(self, generation: Generation) -> None:
        ids = generation.token_ids
        if not ids:
            raise ServerError(f"{self._server.url} answers nothing, not even an end; does it serve --target?")
        if not all(0 <= token < self._target.vocab_size for token in ids):
            raise ServerError(
                f"{self._server.url} answers ids outside the vocabulary of {self._target.name} "
                f"({self._target.vocab_size} ids); does it serve --target?"
            )
        if self.owner == "llamacpp" and generation.finish_reason == "eos" and ids[-1] not in self._target.eos_token_ids:
            # It counts the end of a sequence but does not send it.
            ids.append(min(self._target.eos_token_ids))

    def _totals(self) -> Speculation | None:
        """vLLM's running totals, read until two reads agree; None for other servers."""
        if self.owner != "vllm":
            return None
        last, waited = self._page(), 0.0
        while True:
            time.sleep(_SETTLE)
            waited += _SETTLE
            page = self._page()
            if page == last or waited >= _MOST_SETTLING:
                return page
            last = page

    def _page(self) -> Speculation | None:
        return from_vllm_metrics(self._server.text("/metrics") or "", copies=self._copies)

    def _speculation(self, before: Speculation | None, counts: list[dict[str, Any]]) -> Speculation | None:
        if not self._num_draft_tokens:
            if not self._is_checked:
                self._check_plain(counts)
            return None
        if self.owner == "vllm":
            after = self._totals()
            if after is None:
                raise ServerError(f"{self._server.url} counts no drafts; was it started with --speculative-config?")
            # The first draft makes the counters appear.
            return after if before is None else after - before
        total = self._total(counts)
        if total is None and self.owner in ("llamacpp", "sglang"):
            raise ServerError(f"{self._server.url} counts no drafts; was it started with a draft model?")
        return total

    def _total(self, counts: list[dict[str, Any]]) -> Speculation | None:
        """The sum of the counts that came with answers."""
        if self.owner == "llamacpp":
            return total_of(from_llama_timings(timings, copies=self._copies) for timings in counts)
        return total_of(from_sglang_meta(meta, self._num_draft_tokens) for meta in counts)

    def _check_plain(self, counts: list[dict[str, Any]]) -> None:
        """Refuses a baseline that drafts; its first answer tells."""
        total = self._totals() if self.owner == "vllm" else self._total(counts)
        if total is not None and (total.proposed or total.rounds):
            raise ServerError(
                f"{self._server.url} drafts, but is the baseline: its own counters moved; start it without a draft, or "
                "the speed-up would be that of one draft over another"
            )
        self._is_checked = True

    def _version(self) -> str:
        if self.owner == "vllm":
            page = self._server.text("/version") or "{}"
            return "vllm " + page.partition(':"')[2].rstrip('"}\n') if '"version"' in page else "vllm"
        return self.owner or "unknown"
