"""What stands before the server's application: who may ask, how much, and whether still.

All of it is decided before a request is parsed, so that a request that is refused costs little.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Any

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ztok_rag.serving.failures import body
from ztok_rag.serving.limits import Limits
from ztok_rag.serving.tokens import Tokens

HEALTH = "/health"
"""Answers everybody that the server is there, and nothing else."""

_LONGEST_RETRY = 60  # seconds
_SMOOTHING = 0.1  # share of the last request in the mean time that requests take


class Guard:
    """Checks a request's token, host, size and number, and ends it when its asker has gone.

    A request's body is read whole before the application gets it. An asker who disconnects then
    has the application's task cancelled, whether or not the answer is a stream.

    Attributes:
        running: requests that are being answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        tokens: Tokens | None,
        limits: Limits,
        hosts: Sequence[str] | None = None,
    ) -> None:
        """Set up.

        Args:
            app: the application.
            tokens: those accepted; `None` lets everybody ask.
            limits: of bodies and of requests at once.
            hosts: names under which the server may be asked, without port; `None` is any. A web
                page can make a browser ask this machine under a name of the page's own; this
                refuses it.
        """
        self.app = app
        self.running = 0
        self._tokens = tokens
        self._limits = limits
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._mean_seconds = 1.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, send)
        elif scope["method"] != "POST":
            await self.app(scope, receive, send)
        else:
            await self._post(scope, headers, receive, send)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> JSONResponse | None:
        host = _without_port(headers.get(b"host", b"").decode("latin-1"))
        if self._hosts is not None and host.lower() not in self._hosts:
            return _refuse(400, "this server is not asked under that name; see the header Host.")
        if scope["path"] == HEALTH or self._tokens is None:
            return None
        if self._tokens.accepts(headers.get(b"authorization", b"")):
            return None
        said = "the token is missing or wrong; send the header `Authorization: Bearer TOKEN`."
        return _refuse(401, said, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    async def _post(
        self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> None:
        limits = self._limits
        if self.running >= limits.requests:
            wait = min(_LONGEST_RETRY, math.ceil(self._mean_seconds))
            busy = _refuse(
                429,
                f"{limits.requests} requests are being answered; come again in {wait} s.",
                code="too_many_requests",
                headers={"Retry-After": str(wait)},
            )
            await busy(scope, receive, send)
            return
        self.running += 1
        started = time.monotonic()
        try:
            content = await self._read(headers, receive)
            if isinstance(content, JSONResponse):
                await content(scope, receive, send)
            elif content is not None:
                await self._answer(scope, content, receive, send)
        finally:
            self.running -= 1
            took = time.monotonic() - started
            self._mean_seconds += _SMOOTHING * (took - self._mean_seconds)

    async def _read(
        self, headers: dict[bytes, bytes], receive: Receive
    ) -> bytes | JSONResponse | None:
        """A request's body; what to answer where it is refused; `None` where nobody waits."""
        most = self._limits.body_bytes
        large = _refuse(
            413,
            f"the body has more than {most} bytes; send fewer or shorter texts.",
            code="body_too_large",
            headers={"Connection": "close"},
        )
        stated = headers.get(b"content-length", b"")
        if stated.isdigit() and int(stated[:18]) > most:
            return large
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    size += len(part)
                    if size > most:
                        return large
                    parts.append(part)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            return _refuse(
                408, "the body did not arrive in time; send it again.",
                headers={"Connection": "close"},
            )  # fmt: skip

    async def _answer(self, scope: Scope, content: bytes, receive: Receive, send: Send) -> None:
        """Run the application, as long as the asker is there."""
        gone = asyncio.Event()
        messages: list[Message] = [{"type": "http.request", "body": content, "more_body": False}]

        async def replay() -> Message:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        answering = asyncio.create_task(_run(self.app, scope, replay, send))
        watching = asyncio.create_task(watch())
        try:
            await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            is_done = answering.done()
            for task in (answering, watching):
                task.cancel()
            await asyncio.gather(answering, watching, return_exceptions=True)
        if is_done:
            answering.result()


async def _run(app: ASGIApp, *arguments: Any) -> None:
    await app(*arguments)


def _without_port(host: str) -> str:
    """The name in a header `Host`; an IPv6 address stands there in brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _refuse(
    status: int, message: str, *, code: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    return JSONResponse(body(message, status, code=code), status, headers)
