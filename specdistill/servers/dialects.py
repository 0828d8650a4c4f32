"""What servers want to be asked, and where their answers hold ids and log-probabilities.

vLLM's completions API was tried against vLLM 0.32. SGLang's OpenAI-compatible API tells tokens by their text, which
does not name an id, so its own `/generate` is used; SGLang does not run on the machines that test this, and its form is
checked on a server that imitates it. llama.cpp's own `/completion` was tried against xllamacpp 2026.10.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from specdistill.decoding import Sampling

Entry = dict[int, float]
"""id -> log-probability of one token."""


_FINISH = {"stop": "eos", "length": "length"}
"""An answer that ends otherwise, say, with `abort`, is none."""


@dataclass(frozen=True)
class Piece:
    """What one event of a streamed answer brings."""

    ids: list[int] | None
    """New token ids; None where the server tells none."""
    text: str = ""
    """Their text, where it is needed."""
    finish: str | None = None
    """`eos` or `length` in the last event of an answer."""
    counts: dict[str, Any] = field(default_factory=dict)
    """The engine's own counts of this answer: llama.cpp's timings, SGLang's meta_info, OpenAI's usage."""


class Dialect(Protocol):
    """One kind of server."""

    path: str
    names_model: bool
    """Whether a request says which model it is for."""

    def label_body(self, ids: list[int], top_k: int) -> dict[str, Any]:
        """Asks for the likeliest ids of each token of a text."""
        ...

    def entries(self, answer: dict[str, Any]) -> list[Entry | None]:
        """One per token of the text; raises KeyError, TypeError or ValueError where the answer is none."""
        ...

    def answer_body(
        self, ids: list[int], sampling: Sampling, max_new_tokens: int, seed: int, stop: list[int]
    ) -> dict[str, Any]:
        """Asks for an answer."""
        ...

    def answer_ids(self, answer: dict[str, Any]) -> list[int]:
        """Its tokens; raises like `entries`."""
        ...


class StreamDialect(Protocol):
    """How one kind of server streams an answer."""

    path: str
    names_model: bool

    def stream_body(
        self, ids: list[int], sampling: Sampling, max_new_tokens: int, seed: int, stop: list[int]
    ) -> dict[str, Any]:
        """Asks for an answer, token by token."""
        ...

    def piece(self, event: dict[str, Any], known: int) -> Piece:
        """What an event brings where `known` tokens came before; raises like `Dialect.entries`."""
        ...


class Vllm:
    """`vllm serve`."""

    path = "/v1/completions"
    names_model = True

    def label_body(self, ids: list[int], top_k: int) -> dict[str, Any]:
        # The server must write something; one token is the least.
        return {"prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": top_k}

    def entries(self, answer: dict[str, Any]) -> list[Entry | None]:
        found = answer["choices"][0]["prompt_logprobs"]
        return [
            None if each is None else {int(name): float(value["logprob"]) for name, value in each.items()}
            for each in found
        ]

    def answer_body(
        self, ids: list[int], sampling: Sampling, max_new_tokens: int, seed: int, stop: list[int]
    ) -> dict[str, Any]:
        return {
            "prompt": ids,
            "max_tokens": max_new_tokens,
            # All of them, or the server would take what the model's generation_config suggests.
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

    def answer_ids(self, answer: dict[str, Any]) -> list[int]:
        return [int(each) for each in answer["choices"][0]["token_ids"]]

    def stream_body(
        self, ids: list[int], sampling: Sampling, max_new_tokens: int, seed: int, stop: list[int]
    ) -> dict[str, Any]:
        return self.answer_body(ids, sampling, max_new_tokens, seed, stop) | {"stream": True}

    def piece(self, event: dict[str, Any], known: int) -> Piece:
        choice = event["choices"][0]
        return Piece([int(each) for each in choice["token_ids"]], finish=_FINISH.get(choice["finish_reason"]))


class Sglang:
    """`sglang.launch_server`. Its answers have no seed of their own: it takes one only in its deterministic mode."""

    path = "/generate"
    names_model = False

    def label_body(self, ids: list[int], top_k: int) -> dict[str, Any]:
        return {
            "input_ids": ids,
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": top_k,
        }

    def entries(self, answer: dict[str, Any]) -> list[Entry | None]:
        found = answer["meta_info"]["input_top_logprobs"]
        return [None if each is None else {int(item[1]): float(item[0]) for item in each} for each in found]

    def answer_body(
        self, ids: list[int], sampling: Sampling, max_new_tokens: int, seed: int, stop: list[int]
    ) -> dict[str, Any]:
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

    def answer_ids(self, answer: dict[str, Any]) -> list[int]:
        return [int(each) for each in answer["output_ids"]]

    def stream_body(
        self, ids: list[int], sampling: Sampling, max_new_tokens: int, seed: int, stop: list[int]
    ) -> dict[str, Any]:
        return self.answer_body(ids, sampling, max_new_tokens, seed, stop) | {"stream": True}

    def piece(self, event: dict[str, Any], known: int) -> Piece:
        meta, ids = event["meta_info"], [int(each) for each in event["output_ids"]]
        # Unless started with --incremental-streaming-output, each event repeats the whole answer.
        new = ids[known:] if len(ids) == int(meta["completion_tokens"]) else ids
        reason = meta.get("finish_reason")
        return Piece(new, finish=None if reason is None else _FINISH.get(reason["type"]), counts=meta)


class LlamaCpp:
    """`llama-server`."""

    path = "/completion"
    names_model = False

    def stream_body(
        self, ids: list[int], sampling: Sampling, max_new_tokens: int, seed: int, stop: list[int]
    ) -> dict[str, Any]:
        return {
            "prompt": ids,
            "n_predict": max_new_tokens,
            # Its defaults filter and penalise; only what was asked for may change the distribution.
            "samplers": ["temperature", "top_k", "top_p", "min_p"],
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "repeat_penalty": 1.0,
            "seed": seed % 2**32,
            # A prompt that comes again must be computed again, or the second server to be asked would seem faster.
            "cache_prompt": False,
            "return_tokens": True,
            "stream": True,
        }

    def piece(self, event: dict[str, Any], known: int) -> Piece:
        finish = None
        if event["stop"]:
            finish = "length" if event["stop_type"] == "limit" else "eos"
        return Piece([int(each) for each in event["tokens"]], finish=finish, counts=event.get("timings", {}))


class OpenAi:
    """Any other server of OpenAI's completions API: it takes ids and tells text."""

    path = "/v1/completions"
    names_model = True

    def stream_body(
        self, ids: list[int], sampling: Sampling, max_new_tokens: int, seed: int, stop: list[int]
    ) -> dict[str, Any]:
        asked = {
            "prompt": ids,
            "max_tokens": max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed % 2**31,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        # Unknown to OpenAI's own API, so sent only where they matter.
        wanted = {"top_k": sampling.top_k, "min_p": sampling.min_p}
        return asked | {name: value for name, value in wanted.items() if value}

    def piece(self, event: dict[str, Any], known: int) -> Piece:
        counts = event.get("usage") or {}
        if not event["choices"]:
            return Piece(None, counts=counts)
        choice = event["choices"][0]
        return Piece(None, choice["text"], _FINISH.get(choice.get("finish_reason")), counts)


def dialect_of(owner: str) -> Dialect:
    """By what the server's list of models names as owner; vLLM's where it is neither."""
    return Sglang() if owner.lower().startswith("sglang") else Vllm()


def stream_dialect_of(owner: str) -> StreamDialect:
    """By what the server's list of models names as owner; OpenAI's where it is none that we know."""
    known = {"vllm": Vllm, "sglang": Sglang, "llamacpp": LlamaCpp}
    return known.get(owner.lower(), OpenAi)()
