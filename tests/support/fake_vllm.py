"""A server that answers as `vllm serve` does, with a tiny model behind it; it can be told to misbehave.

The form of its answers was compared with a real vLLM 0.32 on loopback (`benchmarks/studies/soft_labels.py --server`),
that of its streams and counters with a real vLLM 0.32 and xllamacpp 2026.10 (`make test-engines`).
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from specdistill.decoding import Generation, Sampling, SpeculativeDecoder, generate_plain
from specdistill.models import LanguageModel

Fault = Callable[[str, int], tuple[int, Any] | None]
"""(path, number of the request) -> a status and body to answer with instead, or None."""


def copied_run(text: list[int], longest: int, shortest: int, most: int) -> list[int]:
    """The tokens after the earliest place of the longest run of tokens that ends the text, as vLLM proposes them."""
    for size in range(longest, shortest - 1, -1):
        for start in range(len(text) - size):
            if text[start : start + size] == text[len(text) - size :]:
                return text[start + size : start + size + most]
    return []


class FakeVllm:
    """Context manager; `url` is where it listens.

    Args:
        model: Answers.
        name: That it is served under.
        fault: See `Fault`.
        max_logprobs: As vLLM's flag.
        port: 0 takes a free one.
        delay: Seconds before each answer.
        owner: `vllm`; `sglang` or `llamacpp` for a server that answers as SGLang's `/generate` or llama.cpp's
            `/completion` does; anything else tells text only.
        draft: It decodes with this one, and counts.
        num_draft_tokens: gamma.
        break_after: (number of the stream) -> events after which the connection drops, or None.
        lookup: (longest, shortest) run of tokens that it looks for in the text, in place of a draft.
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
        draft: LanguageModel | None = None,
        num_draft_tokens: int = 3,
        break_after: Callable[[int], int | None] = lambda number: None,
        lookup: tuple[int, int] | None = None,
    ) -> None:
        self.lookup, self.calls = lookup, 0
        self.draft, self.num_draft_tokens, self.break_after, self.streams = draft, num_draft_tokens, break_after, 0
        self.drafts, self.drafted, self.accepted, self.positions = 0, 0, 0, [0] * num_draft_tokens
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
                    if status == 200 and isinstance(body, dict) and body.get("stream") and isinstance(answer, list):
                        return self._stream(answer)
                finally:
                    with outer._lock:
                        outer.at_once -= 1
                content = answer if isinstance(answer, bytes | str) else json.dumps(answer)
                content = content.encode() if isinstance(content, str) else content
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def _stream(self, events: list[Any]) -> None:
                with outer._lock:
                    outer.streams += 1
                    last = outer.break_after(outer.streams)
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for event in events[:last]:
                    text = event if isinstance(event, str) else json.dumps(event)
                    line = f"data: {text}\n\n".encode()
                    self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                    self.wfile.flush()
                if last is None:
                    self.wfile.write(b"0\r\n\r\n")
                # Without the last chunk the client sees a broken answer.
                self.close_connection = True

        return Handler

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        if path == "/v1/models":
            return 200, {
                "object": "list",
                "data": [{"id": self.name, "max_model_len": self.model.max_context, "owned_by": self.owner}],
            }
        if path in ("/health", "/version", "/metrics"):
            return 200, {"/health": {}, "/version": {"version": "0.32.0"}}.get(path, self.metrics())
        if isinstance(body, dict) and body.get("stream"):
            with self._model_lock:
                return 200, self._events(body)
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

    def metrics(self) -> str:
        """As vLLM's page; without counters before the first draft, but where it copies, as in vLLM 0.32."""
        if not (self.drafts or self.lookup) or self.owner != "vllm":
            return "# nothing yet\n"
        counts = {"drafts": self.drafts, "draft_tokens": self.drafted, "accepted_tokens": self.accepted}
        labels = f'engine="0",model_name="{self.name}"'
        lines = [f"vllm:spec_decode_num_{name}_total{{{labels}}} {value}.0" for name, value in counts.items()]
        lines += [f"vllm:spec_decode_num_{name}_created{{{labels}}} 1.79e+09" for name in counts]
        lines += [f"vllm:inter_token_latency_seconds_count{{{labels}}} {self.calls}.0"]
        lines += [f'vllm:inter_token_latency_seconds_bucket{{le="0.1",{labels}}} {7 * self.calls}.0']
        lines += [
            f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{{labels},position="{place}"}} {value}.0'
            for place, value in enumerate(self.positions)
        ]
        return "\n".join(lines) + "\n"

    def _events(self, body: dict[str, Any]) -> list[Any]:
        """One per token, as the real ones do; vLLM's holds all tokens of a step."""
        settings = body.get("sampling_params", body)
        ids = body.get("input_ids", body.get("prompt"))
        most = next(settings[name] for name in ("max_tokens", "max_new_tokens", "n_predict") if name in settings)
        sampling = Sampling(temperature=settings["temperature"])
        given = {"max_new_tokens": most, "seeds": [settings.get("seed", 0)]}
        if self.draft is None:
            (written,) = generate_plain(self.model, [ids], sampling=sampling, **given)
            pieces = [[token] for token in written.token_ids]
            if self.lookup is not None:
                pieces = self._copied(ids, written.token_ids)
        else:
            rule = "greedy" if sampling.greedy else "argmax_draft"
            decoder = SpeculativeDecoder(
                self.model, self.draft, num_draft_tokens=self.num_draft_tokens, sampling=sampling, rule=rule
            )
            (written,) = decoder.generate([ids], **given)
            pieces, rest = [written.token_ids[:1]], written.token_ids[1:]
            for entry in written.rounds:
                pieces.append(rest[: entry.emitted])
                rest = rest[entry.emitted :]
            self.drafts += len(written.rounds)
            self.drafted += sum(entry.proposed for entry in written.rounds)
            self.accepted += sum(entry.accepted for entry in written.rounds)
            for entry in written.rounds:
                for place in range(entry.accepted):
                    self.positions[place] += 1
        return getattr(self, f"_{self.owner}_events", self._other_events)(pieces, written)

    def _copied(self, prompt: list[int], answer: list[int]) -> list[list[int]]:
        """Splits a greedy answer into the runs that a server would emit which copies what followed the same tokens."""
        assert self.lookup is not None
        pieces, done = [answer[:1]], 1
        while done < len(answer):
            proposed = copied_run([*prompt, *answer[:done]], *self.lookup, self.num_draft_tokens)
            kept = 0
            while kept < len(proposed) and answer[done + kept : done + kept + 1] == [proposed[kept]]:
                kept += 1
            self.calls += 1
            self.drafts += bool(proposed)
            self.drafted += len(proposed)
            self.accepted += kept
            for place in range(kept):
                self.positions[place] += 1
            pieces.append(answer[done : done + kept + 1])
            done += kept + 1
        return pieces

    def _vllm_events(self, pieces: list[list[int]], written: Generation) -> list[Any]:
        reason = "length" if written.finish_reason == "length" else "stop"
        last = len(pieces) - 1
        return [
            {"choices": [{"index": 0, "token_ids": piece, "finish_reason": reason if place == last else None}]}
            for place, piece in enumerate(pieces)
        ] + ["[DONE]"]

    def _llamacpp_events(self, pieces: list[list[int]], written: Generation) -> list[Any]:
        timings = {"predicted_n": len(written.token_ids)}
        if self.draft is not None:
            timings |= {"draft_n": sum(entry.proposed for entry in written.rounds)}
            timings["draft_n_accepted"] = sum(entry.accepted for entry in written.rounds)
        sent = [token for piece in pieces for token in piece]
        # The end of a sequence is counted, and not sent.
        sent = sent[:-1] if written.finish_reason == "eos" else sent
        kind = "limit" if written.finish_reason == "length" else "eos"
        events: list[Any] = [{"tokens": [token], "stop": False} for token in sent]
        return [*events, {"tokens": [], "stop": True, "stop_type": kind, "timings": timings}]

    def _sglang_events(self, pieces: list[list[int]], written: Generation) -> list[Any]:
        events: list[Any] = []
        done: list[int] = []
        for place, piece in enumerate(pieces):
            done = done + piece
            meta: dict[str, Any] = {"completion_tokens": len(done), "finish_reason": None}
            if self.draft is not None:
                meta["spec_verify_ct"] = place
            if place == len(pieces) - 1:
                meta["finish_reason"] = {"type": "length" if written.finish_reason == "length" else "stop"}
            events.append({"output_ids": done, "meta_info": meta})
        return [*events, "[DONE]"]

    def _other_events(self, pieces: list[list[int]], written: Generation) -> list[Any]:
        events: list[Any] = [
            {"choices": [{"text": " " + self.model.tokenizer.decode(piece), "finish_reason": None}]} for piece in pieces
        ]
        events[-1]["choices"][0]["finish_reason"] = "length" if written.finish_reason == "length" else "stop"
        return [*events, {"choices": [], "usage": {"completion_tokens": len(written.token_ids)}}, "[DONE]"]

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
                else sorted([[label["logprob"], int(name), None] for name, label in entry.items()], reverse=True)[
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
                    str(token): {
                        "logprob": float(row[token]),
                        "rank": ranks.index(token) + 1,
                        "decoded_token": self.model.tokenizer.decode([token]),
                    }
                    for token in chosen
                }
            )
        return entries
