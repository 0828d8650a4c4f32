"""A server that answers as `vllm serve` does, with a tiny model behind it; it can be told to misbehave.

The form of its answers was compared with a real vLLM 0.32 on loopback (`benchmarks/soft_labels.py --server`).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from specdistill.decoding import Sampling, generate_plain
from specdistill.models import LanguageModel

Fault = Callable[[str, int], tuple[int, Any] | None]
"""(path, number of the request) -> a status and body to answer with instead, or None."""


class FakeVllm:
    """Context manager; `url` is where it listens.

    Args:
        model: Answers.
        name: That it is served under.
        fault: See `Fault`.
        max_logprobs: As vLLM's flag.
        port: 0 takes a free one.
        delay: Seconds before each answer.
        owner: `vllm`, or `sglang` for a server that answers as SGLang's `/generate` does.
    """

    def __init__(
        self,
        model: LanguageModel,
        name: str = "the-target",
        *,
        fault: Fault = lambda path, number: None,
        max_logprobs: int = 20,
        port: int = 0,
        delay: float = 0.0,
        owner: str = "vllm",
    ) -> None:
        self.owner = owner
        self.model, self.name, self.fault, self.max_logprobs, self.delay = model, name, fault, max_logprobs, delay
        self.requests, self.at_once, self.most_at_once = 0, 0, 0
        self._lock, self._model_lock = threading.Lock(), threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> FakeVllm:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments: object) -> None:
                pass

            def do_GET(self) -> None:
                self._reply(None)

            def do_POST(self) -> None:
                self._reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def _reply(self, body: Any) -> None:
                with outer._lock:
                    outer.requests += 1
                    number = outer.requests
                    outer.at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer.at_once)
                try:
                    time.sleep(outer.delay)
                    status, answer = outer.fault(self.path, number) or outer.answer(self.path, body)
                finally:
                    with outer._lock:
                        outer.at_once -= 1
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        return Handler

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {
                "object": "list",
                "data": [{"id": self.name, "max_model_len": self.model.max_context, "owned_by": self.owner}],
            }
        if path != "/generate" and body.get("model") != self.name:
            return 404, {"error": {"message": f"The model `{body.get('model')}` does not exist.", "code": 404}}
        if path == "/tokenize":
            return 200, {"tokens": self.model.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]}
        if path == "/generate" and self.owner == "sglang":
            with self._model_lock:
                return 200, self._generate(body)
        asked = body.get("prompt_logprobs")
        if asked is not None and asked > self.max_logprobs:
            message = f"Requested prompt logprobs of {asked}, which is greater than max allowed: {self.max_logprobs}"
            return 400, {"error": {"message": message, "type": "BadRequestError", "code": 400}}
        with self._model_lock:
            return 200, {"object": "text_completion", "choices": [self._choice(body)]}

    def _choice(self, body: dict[str, Any]) -> dict[str, Any]:
        sampling = Sampling(temperature=body["temperature"])
        (written,) = generate_plain(
            self.model,
            [body["prompt"]],
            sampling=sampling,
            max_new_tokens=body["max_tokens"],
            seeds=[body.get("seed", 0)],
        )
        choice: dict[str, Any] = {"index": 0, "text": self.model.decode(written.token_ids), "prompt_logprobs": None}
        choice["finish_reason"] = "length" if written.finish_reason == "length" else "stop"
        if body.get("return_token_ids"):
            choice |= {"prompt_token_ids": body["prompt"], "token_ids": written.token_ids}
        if body.get("prompt_logprobs") is not None:
            choice["prompt_logprobs"] = self._prompt_log_probs(body["prompt"], body["prompt_logprobs"])
        return choice

    def _generate(self, body: dict[str, Any]) -> dict[str, Any]:
        settings = body["sampling_params"]
        as_vllm = {"prompt": body["input_ids"], "max_tokens": settings["max_new_tokens"], "return_token_ids": True}
        as_vllm["temperature"] = settings["temperature"]
        if body.get("return_logprob"):
            assert body["logprob_start_len"] == 0
            as_vllm["prompt_logprobs"] = body["top_logprobs_num"]
        choice = self._choice(as_vllm)
        meta: dict[str, Any] = {"prompt_tokens": len(body["input_ids"])}
        if choice["prompt_logprobs"] is not None:
            # [log-probability, id, text or null], likeliest first; nothing for the first token.
            meta["input_top_logprobs"] = [
                entry
                if entry is None
                else sorted([[each["logprob"], int(name), None] for name, each in entry.items()], reverse=True)[
                    : body["top_logprobs_num"]
                ]
                for entry in choice["prompt_logprobs"]
            ]
        return {"text": choice["text"], "output_ids": choice["token_ids"], "meta_info": meta}

    @torch.no_grad()
    def _prompt_log_probs(self, prompt: list[int], count: int) -> list[Any]:
        hidden = self.model.hidden_states(torch.tensor([prompt]))[0]
        log_probs = self.model.logits(hidden).log_softmax(-1)
        entries: list[Any] = [None]
        for row, actual in zip(log_probs[:-1], prompt[1:], strict=True):
            ranks = row.argsort(descending=True).tolist()
            # The token that is there comes first, also where it is not among the likeliest.
            chosen = dict.fromkeys([actual, *ranks[:count]])
            entries.append(
                {
                    str(each): {
                        "logprob": float(row[each]),
                        "rank": ranks.index(each) + 1,
                        "decoded_token": self.model.tokenizer.decode([each]),
                    }
                    for each in chosen
                }
            )
        return entries
