"""Answers piece by piece, as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi.responses import StreamingResponse

from ztok_rag.serving.failures import failure

_Event = TypeVar("_Event")


def streamed(
    events: AsyncGenerator[_Event, None], chunks: Callable[[_Event], Sequence[Mapping[str, Any]]]
) -> StreamingResponse:
    """A response of type `text/event-stream`, as OpenAI's clients read it.

    Args:
        events: is closed when the asker goes away.
        chunks: what is sent of an event. What fails has no status any more, and is sent as an
            object with `error`, after which nothing follows.
    """
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    lines = _lines(events, chunks)
    return StreamingResponse(lines, media_type="text/event-stream", headers=headers)


async def _lines(
    events: AsyncGenerator[_Event, None], chunks: Callable[[_Event], Sequence[Mapping[str, Any]]]
) -> AsyncGenerator[str, None]:
    async with aclosing(events):
        try:
            async for event in events:
                for data in chunks(event):
                    yield _line(data)
        except Exception as error:
            yield _line(failure(error)[1])
            return
    yield "data: [DONE]\n\n"


def _line(data: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"
