"""The client of a server of this package: prompts with handles go there, answers come back.

It speaks OpenAI's completions, as `ztok serve` does. Where an answer stands in the prompt's texts
is in a field of its own, `ztok`, which other clients pass over.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import httpx

from ztok_rag.errors import HandleError, ServerError, ZtokError

INVALID_HANDLE = "invalid_handle"
"""Code of the server's error for a handle that it does not accept."""

API_KEY_VARIABLE = "ZTOK_API_KEY"

_WITH_USAGE = {"include_usage": True}
_BUSY = (429, 503)
_LONGEST_WAIT = 30.0  # seconds, whatever the server asks for
_SHOWN = 300  # characters of an answer that is not understood


@dataclass(frozen=True)
class Reply:
    """What a server has answered so far.

    Attributes:
        text: the answer, or its next piece.
        usage: token counts as of OpenAI; empty before the end of a stream.
        finish_reason: `"stop"` or `"length"`; `None` before the end of a stream.
        sources: places of the answer in the texts of the handles, as `ZTokenLLM` has them.
    """

    text: str
    usage: dict[str, int] = field(default_factory=dict)
    finish_reason: str | None = None
    sources: list[dict[str, int]] = field(default_factory=list)


class RemoteLLM:
    """Completions of one model of a server.

    Attributes:
        api_base: address of the server's API, such as `http://127.0.0.1:8000/v1`.
        model: name of the model there.
    """

    def __init__(
        self, api_base: str, model: str, api_key: str | None, timeout: float, retries: int
    ) -> None:
        """Set up; nothing is sent yet.

        Args:
            api_base: address of the server's API.
            model: name of the model there.
            api_key: the server's token; `None` is the environment's `ZTOK_API_KEY`, if any.
            timeout: seconds without a byte from the server after which it has failed.
            retries: how often a request is sent again to a server that is busy.
        """
        self.api_base = api_base.rstrip("/")
        self.model = model
        self._key = api_key or os.environ.get(API_KEY_VARIABLE)
        self._timeout = httpx.Timeout(timeout, connect=min(timeout, 10.0))
        self._retries = retries
        if not self.api_base.startswith(("http://", "https://")):
            raise ZtokError(
                f"api_base is the address of a server's API, such as http://127.0.0.1:8000/v1, "
                f"not {api_base!r}."
            )

    @cached_property
    def info(self) -> dict[str, Any]:
        """What the server says of the model: `context_window`, `fingerprint` and the like."""
        with _named(self.api_base), self._client() as client:
            return _checked(client.get(f"{self.api_base}/models/{self.model}"))

    @property
    def name(self) -> str:
        """Of the model, as LlamaIndex shows it; with its fingerprint, where that was asked for."""
        info = self.__dict__.get("info", {})
        return f"ztok-rag:{info['fingerprint']}" if "fingerprint" in info else self.model

    def complete(self, prompt: str, arguments: Mapping[str, Any]) -> Reply:
        """The answer to a prompt.

        Args:
            prompt: text and handles.
            arguments: `max_tokens`, and `stop` where there are any.

        Raises:
            HandleError: the server does not accept a handle.
            ServerError: it cannot be reached, or refuses or fails to answer.
        """
        with _named(self.api_base), self._client() as client:
            for wait in self._waits():
                response = client.post(self._address, json=self._body(prompt, arguments))
                if wait is None or response.status_code not in _BUSY:
                    break
                time.sleep(_asked_to_wait(response, wait))
            return _reply(_checked(response))

    async def acomplete(self, prompt: str, arguments: Mapping[str, Any]) -> Reply:
        """As `complete`, on the event loop."""
        with _named(self.api_base):
            async with self._async_client() as client:
                for wait in self._waits():
                    body = self._body(prompt, arguments)
                    response = await client.post(self._address, json=body)
                    if wait is None or response.status_code not in _BUSY:
                        break
                    await asyncio.sleep(_asked_to_wait(response, wait))
                return _reply(_checked(response))

    def stream(self, prompt: str, arguments: Mapping[str, Any]) -> Iterator[Reply]:
        """As `complete`, piece by piece; the last reply has no text, but all else."""
        body = self._body(prompt, arguments, stream=True, stream_options=_WITH_USAGE)
        end = _End(self.api_base)
        with _named(self.api_base), self._client() as client:
            for wait in self._waits():
                with client.stream("POST", self._address, json=body) as response:
                    if response.status_code == httpx.codes.OK:
                        for line in response.iter_lines():
                            if reply := end.take(line):
                                yield reply
                        break
                    response.read()
                    if wait is None or response.status_code not in _BUSY:
                        _checked(response)
                time.sleep(_asked_to_wait(response, wait or 0.0))
        yield end.reply()

    async def astream(
        self, prompt: str, arguments: Mapping[str, Any]
    ) -> AsyncGenerator[Reply, None]:
        """As `stream`, on the event loop."""
        body = self._body(prompt, arguments, stream=True, stream_options=_WITH_USAGE)
        end = _End(self.api_base)
        with _named(self.api_base):
            async with self._async_client() as client:
                for wait in self._waits():
                    async with client.stream("POST", self._address, json=body) as response:
                        if response.status_code == httpx.codes.OK:
                            async for line in response.aiter_lines():
                                if reply := end.take(line):
                                    yield reply
                            break
                        await response.aread()
                        if wait is None or response.status_code not in _BUSY:
                            _checked(response)
                    await asyncio.sleep(_asked_to_wait(response, wait or 0.0))
        yield end.reply()

    @property
    def _address(self) -> str:
        return f"{self.api_base}/completions"

    def _waits(self) -> Iterator[float | None]:
        """Seconds to wait after each try that met a busy server; `None` for the last."""
        yield from (0.5 * 2**number for number in range(self._retries))
        yield None

    def _body(self, prompt: str, arguments: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        return {"model": self.model, "prompt": prompt, **arguments, **more}

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}

    # A client for each request: one that is kept belongs to one event loop, and to one process.
    def _client(self) -> httpx.Client:
        return httpx.Client(timeout=self._timeout, headers=self._headers())

    def _async_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(timeout=self._timeout, headers=self._headers())


class _End:
    """Reads the events of a stream, and keeps what belongs to its end."""

    def __init__(self, api_base: str) -> None:
        self._api_base = api_base
        self._whole = False
        self._parts: dict[str, Any] = {}

    def take(self, line: str) -> Reply | None:
        """The next piece, where a line of the stream has one."""
        kind, _, data = line.partition(":")
        data = data.strip()
        if kind != "data" or not data:
            return None
        if data == "[DONE]":
            self._whole = True
            return None
        try:
            event = json.loads(data)
        except ValueError as error:
            raise _not_understood(data) from error
        if "error" in event:
            raise _error(0, event)
        reply = _reply(event)
        given: dict[str, Any] = {
            "usage": reply.usage,
            "finish_reason": reply.finish_reason,
            "sources": reply.sources,
        }
        self._parts |= {name: value for name, value in given.items() if value}
        return Reply(reply.text) if reply.text else None

    def reply(self) -> Reply:
        """What the stream ended with.

        Raises:
            ServerError: it ended too soon.
        """
        if not self._whole:
            raise ServerError(
                f"the answer of {self._api_base} broke off; ask again, and see the server's log."
            )
        return Reply("", **self._parts)


def _reply(body: Mapping[str, Any]) -> Reply:
    try:
        choices = body["choices"]
        first = choices[0] if choices else {"text": ""}
        return Reply(
            text=str(first["text"]),
            usage={k: v for k, v in (body.get("usage") or {}).items() if isinstance(v, int)},
            finish_reason=first.get("finish_reason"),
            sources=list((body.get("ztok") or {}).get("sources", [])),
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise _not_understood(json.dumps(body)) from error


def _checked(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of a response that is no error."""
    try:
        body = response.json()
    except ValueError:
        body = None
    if response.status_code == httpx.codes.OK and isinstance(body, dict):
        return body
    if isinstance(body, dict) and "error" in body:
        raise _error(response.status_code, body)
    raise _not_understood(response.text, response.status_code)


def _error(status: int, body: Mapping[str, Any]) -> ZtokError:
    error = body["error"] if isinstance(body["error"], dict) else {"message": str(body["error"])}
    message = str(error.get("message"))
    if error.get("code") == INVALID_HANDLE:
        return HandleError(message)
    if status == httpx.codes.UNAUTHORIZED:
        message += f" (give api_key, or set {API_KEY_VARIABLE})"
    return ServerError(f"the server answers: {message}")


def _not_understood(text: str, status: int | None = None) -> ServerError:
    with_status = "" if status is None else f" with status {status}"
    return ServerError(
        f"the server answers{with_status} what is not OpenAI's format ({text[:_SHOWN]!r}); is "
        "api_base the address of a `ztok serve`, with /v1?"
    )


def _asked_to_wait(response: httpx.Response, otherwise: float) -> float:
    """Seconds that a busy server wants to be left alone."""
    try:
        asked = float(response.headers.get("Retry-After", otherwise))
    except ValueError:
        asked = otherwise
    return min(max(asked, 0.0), _LONGEST_WAIT)


@contextmanager
def _named(api_base: str) -> Iterator[None]:
    """What goes wrong on the way is a `ServerError` that names the server."""
    try:
        yield
    except httpx.InvalidURL as error:
        raise ServerError(f"{api_base} is no address ({error}); correct api_base.") from error
    except httpx.HTTPError as error:
        raise ServerError(
            f"no answer from {api_base} ({type(error).__name__}: {error}); is `ztok serve` running "
            "there?"
        ) from error
