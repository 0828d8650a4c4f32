"""What servers want to be asked, and where their answers hold ids and log-probabilities.

vLLM's completions API was tried against vLLM 0.32. SGLang's OpenAI-compatible API tells tokens by their text, which
does not name an id, so its own `/generate` is used; SGLang does not run on the machines that test this, and its form is
checked on a server that imitates it.
"""

from __future__ import annotations

from typing import Any, Protocol

from specdistill.decoding import Sampling

Entry = dict[int, float]
"""id -> log-probability of one token."""


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


def dialect_of(owner: str) -> Dialect:
    """By what the server's list of models names as owner; vLLM's where it is neither."""
    return Sglang() if owner.lower().startswith("sglang") else Vllm()
