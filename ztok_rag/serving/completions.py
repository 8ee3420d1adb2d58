"""OpenAI's chat and completions.

Requests and models are in the words of `fastapi-openai-compat`. Its own route for chats ends no
stream with `[DONE]`, knows no completions, and tells askers what went wrong inside; these do.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from fastapi_openai_compat import ChatCompletion, Choice, Message, create_models_router

from ztok_rag.llamaindex.llm import ZTokenLLM
from ztok_rag.llamaindex.threads import in_thread
from ztok_rag.serving.asking import Asking, Event, messages_of, stamp
from ztok_rag.serving.failures import Refusal
from ztok_rag.serving.requests import ChatRequest, CompletionRequest
from ztok_rag.serving.server_sent import streamed

_OWNER = "ztok-rag"


def completions_router(asking: Asking) -> APIRouter:
    """Routes of chats, completions and models."""
    router = APIRouter()
    router.include_router(
        create_models_router(list_models=lambda: list(asking.models), owned_by=_OWNER)
    )

    @router.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        """A model, with what a client must know to fill its context."""
        llm = asking.model(name)
        metadata = await in_thread(lambda: llm.metadata)
        return {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": _OWNER,
            "context_window": metadata.context_window,
            "max_tokens": metadata.num_output,
            "fingerprint": llm.reader.fingerprint,
        }

    @router.post("/v1/completions")
    async def completions(request: CompletionRequest) -> Response:
        llm = asking.model(request.model)
        arguments = asking.arguments(request.longest, request.stops, request.min_tokens)
        head = {**stamp("cmpl", request.model), "object": "text_completion"}
        if request.stream:
            if len(request.prompts) != 1:
                raise Refusal("a stream answers one prompt; ask once for each.", param="prompt")
            wants_usage = bool(request.stream_options and request.stream_options.include_usage)

            def chunks(event: Event) -> list[dict[str, Any]]:
                said = {**head, "choices": [_choice(0, event)], **_extra(event)}
                return [said, *_usage_chunk(head, event, wants_usage)]

            events = await asking.stream(llm, request.prompts[0], arguments)
            return streamed(events, chunks)
        answers = await asking.answer(llm, request.prompts, arguments)
        usage = {name: sum(a.usage[name] for a in answers if a.usage) for name in _USAGE}
        choices = [_choice(number, answer) for number, answer in enumerate(answers)]
        extra = _extra(answers[0]) if len(answers) == 1 else {}
        return JSONResponse({**head, "choices": choices, "usage": usage, **extra})

    @router.post("/v1/chat/completions")
    async def chat(request: ChatRequest) -> Response:
        llm = asking.model(request.model)
        arguments = asking.arguments(request.longest, request.stops, request.min_tokens)
        prompt = _prompt(llm, request)
        head = stamp("chatcmpl", request.model)
        if request.stream:
            wants_usage = bool(request.stream_options and request.stream_options.include_usage)
            chunk_head = {**head, "object": "chat.completion.chunk"}
            begun = False

            def chunks(event: Event) -> list[dict[str, Any]]:
                nonlocal begun
                role = {} if begun else {"role": "assistant"}
                begun = True
                choice = {
                    "index": 0,
                    "delta": {**role, "content": event.piece},
                    "finish_reason": event.finish_reason,
                }
                said = {**chunk_head, "choices": [choice], **_extra(event)}
                return [said, *_usage_chunk(chunk_head, event, wants_usage)]

            events = await asking.stream(llm, prompt, arguments)
            return streamed(events, chunks)
        (answer,) = await asking.answer(llm, [prompt], arguments)
        message = Message(role="assistant", content=answer.piece)
        completion = ChatCompletion(
            **head,
            object="chat.completion",
            choices=[Choice(index=0, message=message, finish_reason=answer.finish_reason)],
            usage=dict(answer.usage or {}),
            **_extra(answer),
        )
        return JSONResponse(completion.model_dump(exclude_none=True))

    return router


_USAGE = ("prompt_tokens", "completion_tokens", "total_tokens")


def _prompt(llm: ZTokenLLM, request: ChatRequest) -> str:
    assert llm.messages_to_prompt is not None
    return llm.messages_to_prompt(messages_of(request.messages))


def _choice(number: int, event: Event) -> dict[str, Any]:
    return {
        "index": number,
        "text": event.piece,
        "logprobs": None,
        "finish_reason": event.finish_reason,
    }


def _extra(event: Event) -> dict[str, Any]:
    """What an answer has beyond OpenAI's fields."""
    return {"ztok": {"sources": list(event.sources)}} if event.finish_reason else {}


def _usage_chunk(head: dict[str, Any], event: Event, is_wanted: bool) -> list[dict[str, Any]]:
    if not is_wanted or event.usage is None:
        return []
    return [{**head, "choices": [], "usage": dict(event.usage)}]
