"""`ZTokenLLM`: a LlamaIndex LLM that reads the handles in its prompt as Z-tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from llama_index.core.base.llms.generic_utils import (
    completion_response_to_chat_response,
    stream_completion_response_to_chat_response,
)
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.custom import CustomLLM

from ztok_rag.errors import ZtokError
from ztok_rag.llamaindex.arguments import refuse_unknown_fields
from ztok_rag.llamaindex.events import ZTokenSpliceEvent, dispatcher
from ztok_rag.llamaindex.token_counting import install_handle_tokenizer
from ztok_rag.storage.defaults import default_compressor, default_store
from ztok_rag.storage.handle import escape_handles, escape_handles_in_stream, split_prompt
from ztok_rag.storage.store import ZStore

if TYPE_CHECKING:
    from ztok_rag.codec.reader import Prompt, Segment, ZReader


T = TypeVar("T")

_GENERATION_ARGUMENTS = ("max_new_tokens", "max_tokens", "stop")


class ZTokenLLM(CustomLLM):
    """Answers from any mix of text and handles, in every LlamaIndex component that takes an LLM.

    A handle raises `HandleError` if another store signed it, if it was altered, or if another
    checkpoint made it. So does text that only looks like a handle. `ZTokenPostprocessor` escapes
    such text in documents; use `escape_handles` for your own text.
    Decoding is greedy: `stop`, `max_new_tokens` and `max_tokens` are the only generation
    arguments, and every other is refused.
    """

    max_new_tokens: int = Field(default=64, gt=0, description="Longest answer, in tokens.")
    adapter: str | None = Field(
        default="read",
        description="Reader adapter to answer with; None is the plain base LLM.",
    )

    _reader: ZReader | None = PrivateAttr(default=None)
    _store: ZStore | None = PrivateAttr(default=None)

    def __init__(
        self,
        *,
        reader: ZReader | None = None,
        store: ZStore | None = None,
        max_new_tokens: int = 64,
        adapter: str | None = "read",
        **kwargs: Any,
    ) -> None:
        """Set up; a default reader is loaded when first needed.

        LlamaIndex's global tokenizer is wrapped, so that a handle counts as its Z-tokens. How it
        counts other text stays as it was.

        Args:
            reader: `None` is the default one, shared with `ZTokenPostprocessor`.
            store: whose handles are accepted; `None` is the default one, shared likewise.
            max_new_tokens: longest answer, in tokens.
            adapter: reader adapter to answer with; `None` is the plain base LLM.
            kwargs: fields of LlamaIndex's `LLM`, such as `system_prompt`.

        Raises:
            ZtokError: there is no argument of that name.
        """
        refuse_unknown_fields(type(self), kwargs)
        super().__init__(max_new_tokens=max_new_tokens, adapter=adapter, **kwargs)
        self._reader = reader
        self._store = store
        install_handle_tokenizer()

    @classmethod
    def class_name(cls) -> str:
        return "ZTokenLLM"

    @property
    def reader(self) -> ZReader:
        """The reader in use; the default one is loaded when first asked for."""
        if self._reader is None:
            self._reader = default_compressor().reader
        return self._reader

    @property
    def store(self) -> ZStore:
        """The store whose handles are accepted; the default one is opened when first asked for."""
        if self._store is None:
            self._store = default_store()
        return self._store

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(
            context_window=self.reader.max_positions,
            num_output=self.max_new_tokens,
            model_name=f"ztok-rag:{self.reader.fingerprint}",
        )

    @property
    def reads_z_tokens(self) -> bool:
        """Tells `ZTokenPostprocessor` that this LLM reads handles."""
        return True

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer `prompt`.

        Args:
            prompt: text and handles.
            formatted: whether `completion_to_prompt` was applied already.
            kwargs: `stop`, a string or strings that end the answer; `max_new_tokens` or
                `max_tokens`, the longest answer.

        Raises:
            HandleError: the prompt holds a handle that is not of this store and checkpoint, or
                text that looks like one.
            ZtokError: the prompt is longer than the reader's context, or another generation
                argument is given.
        """
        return self._complete(prompt, formatted, kwargs)

    @llm_completion_callback()
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """As `complete`, in a thread, so that the event loop goes on."""
        return await asyncio.to_thread(self._complete, prompt, formatted, kwargs)

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """As `complete`, piece by piece; each response has the text so far and the new piece."""
        return self._stream(prompt, formatted, kwargs)

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """As `stream_complete`, in threads, so that the event loop goes on."""
        return _in_threads(await asyncio.to_thread(self._stream, prompt, formatted, kwargs))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`, in a thread."""
        assert self.messages_to_prompt is not None
        prompt = self.messages_to_prompt(messages)
        completion = await asyncio.to_thread(self._complete, prompt, True, kwargs)
        return completion_response_to_chat_response(completion)

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """As `stream_chat`, in threads."""
        assert self.messages_to_prompt is not None
        prompt = self.messages_to_prompt(messages)
        stream = await asyncio.to_thread(self._stream, prompt, True, kwargs)
        return _in_threads(stream_completion_response_to_chat_response(stream))

    def _complete(self, prompt: str, formatted: bool, kwargs: dict[str, Any]) -> CompletionResponse:
        limits = self._limits(kwargs)
        segments, prompt_tokens = self._segments(prompt, formatted)
        (answer,) = self.reader.generate([segments], adapter=self.adapter, **limits)
        text = escape_handles(answer.strip())
        return CompletionResponse(text=text, raw=self._usage(prompt_tokens, text))

    def _stream(
        self, prompt: str, formatted: bool, kwargs: dict[str, Any]
    ) -> CompletionResponseGen:
        limits = self._limits(kwargs)
        segments, prompt_tokens = self._segments(prompt, formatted)
        deltas = self.reader.stream(segments, adapter=self.adapter, **limits)

        def respond() -> CompletionResponseGen:
            text = ""
            for delta in escape_handles_in_stream(_stripped(deltas)):
                text += delta
                yield CompletionResponse(
                    text=text, delta=delta, raw=self._usage(prompt_tokens, text)
                )

        return respond()

    def _segments(self, prompt: str, formatted: bool) -> tuple[list[Segment], int]:
        """The prompt cut at its handles, and its number of input positions."""
        started = time.perf_counter()
        if not formatted and self.completion_to_prompt is not None:
            prompt = self.completion_to_prompt(prompt)
        segments = split_prompt(prompt, self.store.secret, self.reader.fingerprint)
        sequences = [s for s in segments if not isinstance(s, str)]
        positions = self._count(segments)
        if sequences:
            dispatcher.event(
                ZTokenSpliceEvent(
                    handles=len(sequences),
                    z_tokens=sum(map(len, sequences)),
                    prompt_tokens=positions,
                    ms=1000 * (time.perf_counter() - started),
                )
            )
        return segments, positions

    def _limits(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        for name in kwargs:
            if name not in _GENERATION_ARGUMENTS:
                raise ZtokError(
                    f"ZTokenLLM decodes greedily and has no generation argument {name!r}; it "
                    f"takes {', '.join(_GENERATION_ARGUMENTS)}."
                )
        stop = kwargs.get("stop") or ()
        return {
            "stop": (stop,) if isinstance(stop, str) else tuple(stop),
            "max_new_tokens": kwargs.get("max_new_tokens")
            or kwargs.get("max_tokens")
            or self.max_new_tokens,
        }

    def _count(self, prompt: Prompt) -> int:
        return self.reader.count_tokens(prompt) if prompt else 0

    def _usage(self, prompt_tokens: int, text: str) -> dict[str, dict[str, int]]:
        """Token counts where LlamaIndex's token counter looks for them."""
        counts = {"prompt_tokens": prompt_tokens, "completion_tokens": self._count(text)}
        return {"usage": counts}


def _stripped(deltas: Iterator[str]) -> Iterator[str]:
    """The pieces of a text, without white space at the beginning and the end of the text."""
    started = False
    held = ""
    for delta in deltas:
        text = held + delta if started else delta.lstrip()
        started = started or bool(text)
        ready = text.rstrip()
        held = text[len(ready) :]
        if ready:
            yield ready


async def _in_threads(items: Iterator[T]) -> AsyncGenerator[T, None]:
    """The items of an iterator, each computed in a thread."""
    end = object()
    while (item := await asyncio.to_thread(next, items, end)) is not end:
        yield item  # type: ignore[misc]
