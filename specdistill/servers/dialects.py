"""Dialects of model servers: how each kind is asked, and where its answers hold token ids and log-probabilities.

    vLLM       its completions API, tried against vLLM 0.32
    SGLang     its own `/generate`, since its OpenAI-compatible API names tokens by their text and gives no ids. SGLang
               does not run on the machines that test this; a server that imitates it is used instead.
    llama.cpp  its own `/completion`, tried against xllamacpp 2026.10

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from specdistill.servers.client import JsonObject
from specdistill.settings.sampling import Sampling

Entry = dict[int, float]
"""Token id -> log-probability, for one position."""

_FINISH_REASONS = {"stop": "eos", "length": "length"}
"""Server's word for why an answer ended -> ours. Answers with another reason, such as `abort`, are incomplete."""


@dataclass(frozen=True)
class Piece:
    """New tokens and facts from one event of a streamed answer."""

    ids: list[int] | None
    """New token ids; None if the server sends text only."""
    text: str = ""
    """Text of the new tokens, if the server sends text only."""
    finish: str | None = None
    """`eos` or `length` in the last event of an answer."""
    counts: JsonObject = field(default_factory=dict)
    """The engine's own counts for this answer: llama.cpp's timings, SGLang's meta_info, OpenAI's usage."""


class Dialect(Protocol):
    """Requests and answers of one kind of server, for whole answers."""

    path: str
    """Path of the endpoint, such as `/v1/completions`."""
    names_model: bool
    """Whether a request must name the model."""

    def label_body(self, ids: list[int], top_k: int) -> JsonObject:
        """Body of a request for the `top_k` likeliest ids at each token of a text."""
        ...

    def entries(self, answer: JsonObject) -> list[Entry | None]:
        """Reads the labels from an answer.

        Returns:
            One entry per token of the text; None for the first, which nothing predicts.

        Raises:
            AttributeError, KeyError, IndexError, TypeError, ValueError: The answer does not hold labels.
        """
        ...

    def answer_body(
        self, ids: list[int], sampling: Sampling, max_new_tokens: int, seed: int, stop: list[int]
    ) -> JsonObject:
        """Body of a request for an answer.

        Args:
            ids: Token ids of the prompt.
            sampling: Temperature and filters.
            max_new_tokens: Limit of the answer.
            seed: Random seed of the answer.
            stop: Ids that end the answer.
        """
        ...

    def answer_ids(self, answer: JsonObject) -> list[int]:
        """Reads the token ids from an answer. Raises the same errors as `entries`."""
        ...


class StreamDialect(Protocol):
    """Requests and events of one kind of server, for streamed answers."""

    path: str
    """Path of the endpoint."""
    names_model: bool
    """Whether a request must name the model."""

    def stream_body(
        self, ids: list[int], sampling: Sampling, max_new_tokens: int, seed: int, stop: list[int]
    ) -> JsonObject:
        """Body of a request for a streamed answer; arguments as in `Dialect.answer_body`."""
        ...

    def piece(self, event: JsonObject, known: int) -> Piece:
        """Reads one event.

        Args:
            event: The event.
            known: Number of tokens that earlier events brought.

        Raises:
            AttributeError, KeyError, IndexError, TypeError, ValueError: The event does not hold tokens.
        """
        ...


class Vllm:
    """`vllm serve`."""

    path = "/v1/completions"
    names_model = True

    def label_body(self, ids: list[int], top_k: int) -> JsonObject:
        # The server must write at least one token.
        return {"prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": top_k}

    def entries(self, answer: JsonObject) -> list[Entry | None]:
        positions = answer["choices"][0]["prompt_logprobs"]
        return [
            None if ids is None else {int(token_id): float(value["logprob"]) for token_id, value in ids.items()}
            for ids in positions
        ]

    def answer_body(
        self, ids: list[int], sampling: Sampling, max_new_tokens: int, seed: int, stop: list[int]
    ) -> JsonObject:
        return {
            "prompt": ids,
            "max_tokens": max_new_tokens,
            # Every setting is sent; the server fills gaps from the model's generation_config.
            "temperature": sampling.temperature,
            "top_k": sampling.top_k or -1,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": seed % 2**63,
            "stop_token_ids": stop,
            "return_token_ids": True,
            "skip_special_tokens": False,
        }

    def answer_ids(self, answer: JsonObject) -> list[int]:
        return _integers(answer["choices"][0]["token_ids"])

    def stream_body(
        self, ids: list[int], sampling: Sampling, max_new_tokens: int, seed: int, stop: list[int]
    ) -> JsonObject:
        return self.answer_body(ids, sampling, max_new_tokens, seed, stop) | {"stream": True}

    def piece(self, event: JsonObject, known: int) -> Piece:
        choice = event["choices"][0]
        return Piece(_integers(choice["token_ids"]), finish=_FINISH_REASONS.get(choice["finish_reason"]))


class Sglang:
    """`sglang.launch_server`. Answers get no seed, since SGLang takes one in its deterministic mode only."""

    path = "/generate"
    names_model = False

    def label_body(self, ids: list[int], top_k: int) -> JsonObject:
        return {
            "input_ids": ids,
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": top_k,
        }

    def entries(self, answer: JsonObject) -> list[Entry | None]:
        positions = answer["meta_info"]["input_top_logprobs"]
        return [
            None if ids is None else {int(token_id): float(log_prob) for log_prob, token_id, *_ in ids}
            for ids in positions
        ]

    def answer_body(
        self, ids: list[int], sampling: Sampling, max_new_tokens: int, seed: int, stop: list[int]
    ) -> JsonObject:
        settings = {
            "max_new_tokens": max_new_tokens,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k or -1,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "stop_token_ids": stop,
            "skip_special_tokens": False,
        }
        return {"input_ids": ids, "sampling_params": settings}

    def answer_ids(self, answer: JsonObject) -> list[int]:
        return _integers(answer["output_ids"])

    def stream_body(
        self, ids: list[int], sampling: Sampling, max_new_tokens: int, seed: int, stop: list[int]
    ) -> JsonObject:
        return self.answer_body(ids, sampling, max_new_tokens, seed, stop) | {"stream": True}

    def piece(self, event: JsonObject, known: int) -> Piece:
        meta, ids = event["meta_info"], _integers(event["output_ids"])
        # Each event repeats the whole answer, unless the server runs with --incremental-streaming-output.
        new = ids[known:] if len(ids) == int(meta["completion_tokens"]) else ids
        reason = meta.get("finish_reason")
        return Piece(new, finish=None if reason is None else _FINISH_REASONS.get(reason["type"]), counts=meta)


class LlamaCpp:
    """`llama-server`."""

    path = "/completion"
    names_model = False

    def stream_body(
        self, ids: list[int], sampling: Sampling, max_new_tokens: int, seed: int, stop: list[int]
    ) -> JsonObject:
        return {
            "prompt": ids,
            "n_predict": max_new_tokens,
            # llama.cpp's default samplers change the distribution; these are the ones that `Sampling` knows.
            "samplers": ["temperature", "top_k", "top_p", "min_p"],
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repeat_penalty": 1.0,
            "seed": seed % 2**32,
            # Repeated prompts are computed again, so that no server looks faster for having cached one.
            "cache_prompt": False,
            "return_tokens": True,
            "stream": True,
        }

    def piece(self, event: JsonObject, known: int) -> Piece:
        finish = None
        if event["stop"]:
            finish = "length" if event["stop_type"] == "limit" else "eos"
        return Piece(_integers(event["tokens"]), finish=finish, counts=event.get("timings", {}))


class OpenAi:
    """Any other server with OpenAI's completions API. It takes token ids and answers with text."""

    path = "/v1/completions"
    names_model = True

    def stream_body(
        self, ids: list[int], sampling: Sampling, max_new_tokens: int, seed: int, stop: list[int]
    ) -> JsonObject:
        body = {
            "prompt": ids,
            "max_tokens": max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed % 2**31,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        # OpenAI's own API does not know these filters, so they are sent only if they are set.
        filters = {"top_k": sampling.top_k, "min_p": sampling.min_p}
        return body | {name: value for name, value in filters.items() if value}

    def piece(self, event: JsonObject, known: int) -> Piece:
        counts = event.get("usage") or {}
        if not event["choices"]:
            return Piece(None, counts=counts)
        choice = event["choices"][0]
        return Piece(None, choice["text"], _FINISH_REASONS.get(choice.get("finish_reason")), counts)


def dialect_of(owner: str) -> Dialect:
    """Dialect of a server, by the owner in its list of models; vLLM's if the owner is not SGLang."""
    return Sglang() if owner.lower().startswith("sglang") else Vllm()


def stream_dialect_of(owner: str) -> StreamDialect:
    """Dialect of a streaming server, by the owner in its list of models; OpenAI's if the owner is unknown."""
    dialects = {"vllm": Vllm, "sglang": Sglang, "llamacpp": LlamaCpp}
    return dialects.get(owner.lower(), OpenAi)()


def _integers(values: list) -> list[int]:
    return [int(value) for value in values]
