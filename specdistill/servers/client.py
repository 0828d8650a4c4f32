"""Requests to an OpenAI-compatible server that wait while it is away, and end with one clear line when it stays away.

Imports no torch. httpx2 is imported on first use.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from specdistill.errors import ConfigError, ServerAwayError, ServerError

API_KEY_VARIABLE = "OPENAI_API_KEY"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
# Too early, too many, or broken for the moment; every other refusal would be the same the next time.
_PASSING = {408, 409, 425, 429}


class ModelServer:
    """One server, asked by several threads at a time.

    Args:
        url: With or without the trailing /v1.
        model: The name that it serves; None takes the only one.
        concurrency: Requests under way at a time.
        patience: Seconds that a request is tried again for before the server counts as gone.
        timeout: Seconds that one answer may take.
        remedy: What to do about a server that stays away.
        say: Where waiting announces itself.

    Raises:
        ConfigError: The URL is none.
        ServerError: No server, or it does not serve the model.
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
        import httpx2

        check_url(url)
        self.url = url.rstrip("/").removesuffix("/v1")
        self._concurrency, self._patience, self._say = concurrency, patience, say
        self._timeout, self._remedy = timeout, remedy
        key = os.environ.get(API_KEY_VARIABLE)
        self._client = httpx2.Client(
            timeout=httpx2.Timeout(timeout, connect=min(10.0, timeout)),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx2.Limits(max_connections=concurrency),
        )
        self._random = random.Random()
        served = {each["id"]: each for each in self._listing()}
        if model is None and len(served) != 1:
            raise ServerError(f"{url} serves {', '.join(served) or 'no model'}; choose one with --server-model")
        if model is not None and model not in served:
            raise ServerError(f"{url} does not serve {model!r}, but {', '.join(served)}; name it with --server-model")
        self.model = model or next(iter(served))
        self.max_context: int | None = served[self.model].get("max_model_len")
        self.owner = str(served[self.model].get("owned_by", ""))
        """What serves the model: vllm, sglang."""

    def ask(self, path: str, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The server's answer to each body, in order.

        Raises:
            ServerError: The server is gone, refuses, or answers something that is no JSON object.
        """
        with ThreadPoolExecutor(self._concurrency) as threads:
            return list(threads.map(lambda body: self._request("POST", path, body), bodies))

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of one streamed answer as they arrive; asked once, since a second try would be timed with it.

        Raises:
            ServerAwayError: The server is gone, overloaded or too slow, also in the middle of the answer.
            ServerError: It refuses, or answers something that is no stream of JSON objects.
        """
        import httpx2

        end = time.monotonic() + self._timeout
        try:
            with self._client.stream("POST", self.url + path, json=body) as response:
                if not response.is_success:
                    response.read()
                    raise self._refusal(path, response)
                for line in response.iter_lines():
                    if time.monotonic() > end:
                        raise ServerAwayError(f"{self.url}{path} took over {self._timeout:.0f} s for one answer")
                    if line.startswith("data:") and line[5:].strip() != "[DONE]":
                        yield self._event(path, line[5:])
                    elif line.strip() and not line.startswith(("data:", ":", "event:", "id:", "retry:")):
                        raise self._garbage(path, line)
        except httpx2.TransportError as error:
            reason = str(error) or type(error).__name__
            raise ServerAwayError(f"{self.url}{path} broke off ({reason})") from error

    def wait(self) -> None:
        """Returns once the server lists its models again.

        Raises:
            ServerError: It stays away.
        """
        self._listing()

    def text(self, path: str) -> str | None:
        """A page of the server that is no JSON, such as its metrics; None where it has none.

        Raises:
            ServerAwayError: The server is gone.
        """
        import httpx2

        try:
            response = self._client.get(self.url + path)
        except httpx2.TransportError as error:
            raise ServerAwayError(f"{self.url}{path} gives no answer ({error})") from error
        return response.text if response.is_success else None

    def close(self) -> None:
        """Drops the connections."""
        self._client.close()

    def tokenize(self, text: str) -> list[int] | None:
        """The server's own ids for a text, or None where it has no such endpoint."""
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

    def _listing(self) -> list[dict[str, Any]]:
        answer = self._request("GET", "/v1/models", None)
        found = answer.get("data")
        if not isinstance(found, list) or not all(isinstance(each, dict) and "id" in each for each in found):
            raise self._garbage("/v1/models", answer)
        return found

    def _garbage(self, path: str, answer: Any) -> ServerError:
        return ServerError(
            f"{self.url}{path} answered {str(answer)[:80]!r}, which no OpenAI-compatible server does; is the URL right?"
        )

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        import httpx2

        started, pause, told = time.monotonic(), _FIRST_PAUSE, False
        while True:
            wanted = None
            try:
                response = self._client.request(method, self.url + path, json=body)
            except httpx2.TransportError as error:
                # Refused, reset, timed out: what a server does that restarts or is overloaded.
                reason = str(error) or type(error).__name__
            else:
                if response.is_success:
                    return self._parse(path, response)
                refusal = self._refusal(path, response)
                if not isinstance(refusal, ServerAwayError):
                    raise refusal
                reason = f"HTTP {response.status_code}: {_message(response)}"
                wanted = response.headers.get("retry-after")
            waited = time.monotonic() - started
            if waited >= self._patience:
                raise ServerError(f"{self.url} gives no answer since {waited:.0f} s ({reason}); {self._remedy}")
            if not told:
                self._say(f"{self.url}: {reason}; trying again for {self._patience:.0f} s")
                told = True
            # Jitter: threads that failed together must not come back together.
            delay = float(wanted) if wanted and wanted.isdigit() else pause * self._random.uniform(0.5, 1.0)
            time.sleep(min(delay, max(0.0, self._patience - waited)))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _refusal(self, path: str, response: Any) -> ServerError:
        reason = f"HTTP {response.status_code}: {_message(response)}"
        passing = response.status_code >= 500 or response.status_code in _PASSING
        kind = ServerAwayError if passing else ServerError
        return kind(f"{self.url}{path} refused: {reason}", response.status_code)

    def _event(self, path: str, text: str) -> dict[str, Any]:
        try:
            event = json.loads(text)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise self._garbage(path, text)
        if event.get("error"):
            error = event["error"]
            raise ServerError(f"{self.url}{path}: {error.get('message', error) if isinstance(error, dict) else error}")
        return event

    def _parse(self, path: str, response: Any) -> dict[str, Any]:
        try:
            answer = response.json()
        except ValueError:
            raise self._garbage(path, response.text) from None
        if not isinstance(answer, dict):
            raise self._garbage(path, answer)
        return answer


def check_url(url: str) -> None:
    """Needs no server.

    Raises:
        ConfigError: The URL is none.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"a server's URL starts with http:// or https://, got {url!r}")


def _message(response: Any) -> str:
    try:
        answer = response.json()
        error = answer.get("error", answer)
        text = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        text = response.text
    return " ".join(str(text).split())[:300]
