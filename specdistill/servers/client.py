"""Client of an OpenAI-compatible server. Requests wait while the server is away and fail with one clear line.

Imports no torch. httpx2 is imported on first use.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from specdistill.errors import ConfigError, ServerAwayError, ServerError, first_line
from specdistill.servers import proxies
from specdistill.servers.urls import check_url

JsonObject = dict[str, Any]
"""A JSON object whose keys the server decides: the body of a request, an answer, or one event of a stream."""

API_KEY_VARIABLE = "OPENAI_API_KEY"
"""Environment variable with the server's key, if it wants one."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
"""Seconds between two tries of one request; the pause doubles each time."""
_TEMPORARY_STATUSES = {408, 409, 425, 429}
"""HTTP refusals, next to those from 500 up, that a later try may not meet."""


class _Away(NamedTuple):
    """Why a try failed that may succeed later."""

    reason: str
    retry_after: str | None = None
    """Seconds to wait, as the server's Retry-After header has them."""


class ModelServer:
    """Connection to one server, which several threads may use at a time.

    Args:
        url: URL of the server, with or without /v1 at its end.
        model: Name of the served model; None takes the only one.
        concurrency: Requests that run at the same time.
        patience: Seconds to repeat a request for while the server is away.
        timeout: Seconds that one answer may take.
        remedy: Advice for the error message when the server stays away.
        say: Called with a line of text when a request has to wait.

    Raises:
        ConfigError: `url` is not an HTTP URL, or the environment's proxy can't be used.
        ServerError: The server stays away or does not serve the model.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        concurrency: int = 8,
        patience: float = 600.0,
        timeout: float = 300.0,
        remedy: str = "start it again, then the same command with --resume goes on",
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        check_url(url)
        self.url = url.rstrip("/").removesuffix("/v1")
        self._via = proxies.remedy_for(self.url)
        """Names the proxy in between, for errors; empty without one."""
        self._concurrency, self._patience, self._say = concurrency, patience, say
        self._timeout, self._remedy = timeout, remedy
        self._client = self._open()
        self._random = random.Random()
        served = {entry["id"]: entry for entry in self._listing()}
        if model is None and len(served) != 1:
            raise ServerError(f"{url} serves {', '.join(served) or 'no model'}; choose one with --server-model")
        if model is not None and model not in served:
            raise ServerError(f"{url} does not serve {model!r}, but {', '.join(served)}; name it with --server-model")
        self.model = model or next(iter(served))
        self.max_context: int | None = served[self.model].get("max_model_len")
        self.owner = str(served[self.model].get("owned_by", ""))
        """The software that serves the model, such as vllm or sglang; empty if the server does not tell."""

    def _open(self) -> Any:
        import httpx2

        key = os.environ.get(API_KEY_VARIABLE)
        try:
            return httpx2.Client(
                timeout=httpx2.Timeout(self._timeout, connect=min(10.0, self._timeout)),
                headers={"Authorization": f"Bearer {key}"} if key else {},
                limits=httpx2.Limits(max_connections=self._concurrency),
                trust_env=not proxies.is_loopback(self.url),
            )
        except (ImportError, ValueError, httpx2.InvalidURL) as error:
            # A SOCKS proxy without its package, or no URL at all.
            raise ConfigError(f"can't reach {self.url}{self._via}: {first_line(error)}") from error

    def ask(self, path: str, bodies: list[JsonObject]) -> list[JsonObject]:
        """Sends several requests at the same time and returns the answers in order.

        Raises:
            ServerError: The server stays away, refuses, or sends something other than a JSON object.
        """
        ended = threading.Event()
        with ThreadPoolExecutor(self._concurrency) as threads:
            try:
                return list(threads.map(lambda body: self._request("POST", path, body, ended), bodies))
            finally:
                # On Ctrl-C, or where one request is refused, the others must not wait for a server that is away.
                ended.set()

    def stream(self, path: str, body: JsonObject) -> Iterator[JsonObject]:
        """Yields the events of one streamed answer as they arrive.

        The request is not repeated, because callers time it and a second try would count too.

        Raises:
            ServerAwayError: The server is away, overloaded or too slow, perhaps in the middle of the answer.
            ServerError: The server refuses, or sends something other than a stream of JSON objects.
        """
        import httpx2

        end = time.monotonic() + self._timeout
        try:
            with self._client.stream("POST", self.url + path, json=body) as response:
                if not response.is_success:
                    response.read()
                    raise self._refusal(path, response)
                for line in _lines(response.iter_bytes()):
                    if time.monotonic() > end:
                        raise ServerAwayError(
                            f"{self.url}{path}{self._via} took over {self._timeout:.0f} s for one answer"
                        )
                    if line.startswith("data:") and line[5:].strip() != "[DONE]":
                        yield self._event(path, line[5:])
                    elif line.strip() and not line.startswith(("data:", ":", "event:", "id:", "retry:")):
                        raise self._garbage(path, line)
        except httpx2.TransportError as error:
            reason = str(error) or type(error).__name__
            raise ServerAwayError(f"{self.url}{path}{self._via} broke off ({reason})") from error

    def wait(self) -> None:
        """Waits until the server lists its models.

        Raises:
            ServerError: The server stays away.
        """
        self._listing()

    def text(self, path: str) -> str | None:
        """Fetches a page as text, such as the server's metrics; None if the server has no such page.

        Raises:
            ServerAwayError: The server does not respond.
        """
        import httpx2

        try:
            response = self._client.get(self.url + path)
        except httpx2.TransportError as error:
            raise ServerAwayError(f"{self.url}{path}{self._via} gives no answer ({error})") from error
        return response.text if response.is_success else None

    def close(self) -> None:
        """Closes all connections."""
        self._client.close()

    def tokenize(self, text: str) -> list[int] | None:
        """Token ids of a text by the server's tokenizer; None if the server does not offer this.

        Raises:
            ServerError: The server stays away, refuses, or sends something other than token ids.
        """
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        try:
            answer = self._request("POST", "/tokenize", body)
        except ServerError as error:
            if error.status in (404, 405):
                return None
            raise
        tokens = answer.get("tokens")
        if not isinstance(tokens, list):
            raise self._garbage("/tokenize", answer)
        return tokens

    def _listing(self) -> list[JsonObject]:
        answer = self._request("GET", "/v1/models", None)
        models = answer.get("data")
        if not isinstance(models, list) or not all(isinstance(entry, dict) and "id" in entry for entry in models):
            raise self._garbage("/v1/models", answer)
        return models

    def _garbage(self, path: str, answer: Any) -> ServerError:
        return ServerError(
            f"{self.url}{path}{self._via} answered {str(answer)[:80]!r}, which no OpenAI-compatible server does; "
            "is the URL right?"
        )

    def _request(
        self, method: str, path: str, body: JsonObject | None, ended: threading.Event | None = None
    ) -> JsonObject:
        """Sends a request again and again while the server is away, for at most `patience` seconds or until `ended`."""
        ended = ended or threading.Event()
        started, pause, announced = time.monotonic(), _FIRST_PAUSE, False
        while True:
            answer = self._try_once(method, path, body)
            if not isinstance(answer, _Away):
                return answer
            waited = time.monotonic() - started
            if waited >= self._patience or ended.is_set():
                raise ServerError(
                    f"{self.url}{self._via} gives no answer since {waited:.0f} s ({answer.reason}); {self._remedy}"
                )
            if not announced:
                self._say(f"{self.url}{self._via}: {answer.reason}; trying again for {self._patience:.0f} s")
                announced = True
            asked_for = answer.retry_after
            # Random pauses keep threads that failed together from coming back together.
            delay = float(asked_for) if asked_for and asked_for.isdigit() else pause * self._random.uniform(0.5, 1.0)
            ended.wait(min(delay, max(0.0, self._patience - waited)))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _try_once(self, method: str, path: str, body: JsonObject | None) -> JsonObject | _Away:
        import httpx2

        try:
            response = self._client.request(method, self.url + path, json=body)
        except httpx2.TransportError as error:
            # The connection was refused, reset or timed out, as by a server that restarts or is overloaded.
            return _Away(str(error) or type(error).__name__)
        if response.is_success:
            return self._parse(path, response)
        refusal = self._refusal(path, response)
        if not isinstance(refusal, ServerAwayError):
            raise refusal
        return _Away(_reason(response), response.headers.get("retry-after"))

    def _refusal(self, path: str, response: Any) -> ServerError:
        temporary = response.status_code >= 500 or response.status_code in _TEMPORARY_STATUSES
        kind = ServerAwayError if temporary else ServerError
        return kind(f"{self.url}{path}{self._via} refused: {_reason(response)}", response.status_code)

    def _event(self, path: str, text: str) -> JsonObject:
        try:
            event = json.loads(text)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise self._garbage(path, text)
        if event.get("error"):
            raise ServerError(f"{self.url}{path}: {_error_text(event['error'])}")
        return event

    def _parse(self, path: str, response: Any) -> JsonObject:
        try:
            answer = response.json()
        except ValueError:
            raise self._garbage(path, response.text) from None
        if not isinstance(answer, dict):
            raise self._garbage(path, answer)
        return answer


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    r"""Splits a stream at \n or \r\n only; httpx would also split at U+2028, which the JSON of an event may hold."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.removesuffix(b"\r").decode(errors="replace") for line in lines)
    yield rest.removesuffix(b"\r").decode(errors="replace")


def _reason(response: Any) -> str:
    """A refusal in one line: the HTTP status and the server's own message, cut at 300 characters."""
    try:
        answer = response.json()
        text = _error_text(answer.get("error", answer))
    except (ValueError, AttributeError):
        text = response.text
    return f"HTTP {response.status_code}: {' '.join(str(text).split())[:300]}"


def _error_text(error: Any) -> Any:
    """The message inside an error object; other values are returned as they are."""
    return error.get("message", error) if isinstance(error, dict) else error
