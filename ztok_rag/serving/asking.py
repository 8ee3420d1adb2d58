"""From a request for completions to answers, whole or piece by piece."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    CompletionResponse,
    MessageRole,
    TextBlock,
)

from ztok_rag.files import show
from ztok_rag.llamaindex.llm import ZTokenLLM
from ztok_rag.llamaindex.threads import in_thread
from ztok_rag.serving.failures import Refusal
from ztok_rag.serving.limits import Limits
from ztok_rag.storage.handle import count_tokens

_ROLES = ("system", "developer", "user", "assistant")


@dataclass(frozen=True)
class Event:
    """What a stream says next.

    Attributes:
        piece: of the answer.
        finish_reason: of the last event; `None` before.
        usage: token counts, at the end.
        sources: places of the answer in the prompt's texts, at the end.
    """

    piece: str
    finish_reason: str | None = None
    usage: Mapping[str, int] | None = None
    sources: Sequence[Mapping[str, int]] = ()


class Asking:
    """Asks the LLMs of a server within its limits."""

    def __init__(self, models: Mapping[str, ZTokenLLM], limits: Limits) -> None:
        self.models = models
        self._limits = limits

    def model(self, name: str) -> ZTokenLLM:
        """The LLM of a name.

        Raises:
            Refusal: there is none.
        """
        if name not in self.models:
            raise Refusal(
                f"there is no model {show(name)[:80]!r}; there are {', '.join(self.models)}.",
                status=404,
                code="model_not_found",
                param="model",
            )
        return self.models[name]

    def arguments(
        self, longest: int | None, stop: Sequence[str], shortest: int | None = None
    ) -> dict[str, Any]:
        """Arguments of an LLM's call.

        Raises:
            Refusal: the answer may be longer than the server writes.
        """
        most = self._limits.answer_tokens
        if longest is not None and longest > most:
            raise Refusal(
                f"an answer has at most {most} tokens here, not {longest}; ask for fewer.",
                param="max_tokens",
            )
        given: dict[str, Any] = {} if longest is None else {"max_tokens": longest}
        if shortest is not None:
            given["min_new_tokens"] = shortest
        return {**given, "stop": list(stop)} if stop else given

    def check_prompts(self, llm: ZTokenLLM, prompts: Sequence[str]) -> None:
        """Make sure that prompts are as long as the server reads, by what their handles state.

        Raises:
            Refusal: there are too many, or one is too long.
        """
        if not 1 <= len(prompts) <= self._limits.prompts:
            raise Refusal(
                f"a request has 1 to {self._limits.prompts} prompts, not {len(prompts)}.",
                param="prompt",
            )
        reader = llm.reader
        most = min(self._limits.prompt_tokens or reader.max_positions, reader.max_positions)
        for prompt in prompts:
            held = count_tokens(prompt, lambda text: [0] * reader.count_tokens(text, adapter=None))
            if held > most:
                raise Refusal(
                    f"the prompt takes {held} tokens, and this server reads {most}; retrieve fewer "
                    "chunks, or compress at a higher rate.",
                    code="context_length_exceeded",
                    param="prompt",
                )

    async def answer(
        self, llm: ZTokenLLM, prompts: Sequence[str], arguments: Mapping[str, Any]
    ) -> list[Event]:
        """The answers to prompts, each as one event."""
        await in_thread(self.check_prompts, llm, prompts)
        tasks = [
            asyncio.ensure_future(llm.acomplete(prompt, formatted=True, **arguments))
            for prompt in prompts
        ]
        try:
            return [_event(response, response.text) for response in await asyncio.gather(*tasks)]
        finally:  # where one fails, the others are not wanted any more
            for task in tasks:
                task.cancel()

    async def stream(
        self, llm: ZTokenLLM, prompt: str, arguments: Mapping[str, Any]
    ) -> AsyncGenerator[Event, None]:
        """The answer to a prompt, piece by piece.

        What is wrong with the prompt is raised here, before the first piece.
        """
        await in_thread(self.check_prompts, llm, [prompt])
        responses = await llm.astream_complete(prompt, formatted=True, **arguments)
        first = await anext(responses)

        async def events() -> AsyncGenerator[Event, None]:
            async with aclosing(responses):
                yield _event(first, first.delta or "")
                async for response in responses:
                    yield _event(response, response.delta or "")

        return events()


def messages_of(given: Sequence[Mapping[str, Any]]) -> list[ChatMessage]:
    """LlamaIndex's messages from OpenAI's.

    Raises:
        Refusal: a message has another role, or holds what is no text.
    """
    messages = []
    for number, message in enumerate(given):
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            raise _odd(number, f"has the role {show(str(role))[:40]!r}; it is {_either(_ROLES)}")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list) or not parts:
            raise _odd(number, "has no content; it is text, or a list of parts of text")
        texts = []
        for part in parts:
            text = part.get("text") if isinstance(part, dict) else None
            if not isinstance(text, str) or part.get("type") != "text":
                raise _odd(number, 'has a part that is no {"type": "text", "text": …}')
            texts.append(TextBlock(text=text))
        messages.append(ChatMessage(role=MessageRole(role), blocks=list(texts)))
    return messages


def stamp(kind: str, model: str) -> dict[str, Any]:
    """The fields that every answer and every event of it begins with."""
    return {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}


def _event(response: CompletionResponse, piece: str) -> Event:
    raw = response.raw if isinstance(response.raw, dict) else {}
    reason = raw.get("finish_reason")
    if reason is None:
        return Event(piece)
    usage = dict(raw["usage"])
    usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
    return Event(piece, reason, usage, response.additional_kwargs.get("sources", ()))


def _odd(number: int, said: str) -> Refusal:
    return Refusal(f"message {number} {said}.", param="messages")


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
