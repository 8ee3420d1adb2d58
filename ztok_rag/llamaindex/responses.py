"""LlamaIndex's responses, made of a server's replies and of answers that are whole at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from llama_index.core.base.llms.types import (
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
)

from ztok_rag.llamaindex.remote import Reply


def of_server(reply: Reply, text: str | None = None) -> CompletionResponse:
    """A server's reply as a response; in a stream, `text` is the answer so far."""
    final = reply.finish_reason is not None
    return CompletionResponse(
        text=reply.text if text is None else text,
        delta=None if text is None else reply.text,
        additional_kwargs={"sources": reply.sources} if final else {},
        raw={"usage": reply.usage, "finish_reason": reply.finish_reason},
    )


def of_server_stream(replies: Iterator[Reply]) -> CompletionResponseGen:
    """The replies of a stream as responses, each with the answer so far."""
    text = ""
    for reply in replies:
        text += reply.text
        yield of_server(reply, text)


async def of_server_astream(replies: AsyncGenerator[Reply, None]) -> CompletionResponseAsyncGen:
    """As `of_server_stream`; the stream is closed when nobody reads it any more."""
    text = ""
    async with aclosing(replies):
        async for reply in replies:
            text += reply.text
            yield of_server(reply, text)


def in_pieces(response: CompletionResponse) -> CompletionResponseGen:
    """A whole response as a stream has it."""
    yield response.model_copy(update={"delta": response.text})
    yield response.model_copy(update={"delta": ""})


async def in_async_pieces(response: CompletionResponse) -> CompletionResponseAsyncGen:
    """As `in_pieces`."""
    for piece in in_pieces(response):
        yield piece
