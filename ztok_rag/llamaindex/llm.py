"""`ZTokenLLM`: a LlamaIndex LLM that reads the handles in its prompt as Z-tokens."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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

from ztok_rag.codec.citations import locate
from ztok_rag.codec.copying import CopyCosts
from ztok_rag.codec.model import READ
from ztok_rag.codec.sequence import ZSequence
from ztok_rag.codec.speculation import Speculate
from ztok_rag.errors import ZtokError
from ztok_rag.llamaindex.arguments import refuse_unknown_fields
from ztok_rag.llamaindex.events import ZTokenSpliceEvent, dispatcher
from ztok_rag.llamaindex.sending import MadeAgain
from ztok_rag.llamaindex.threads import in_thread, iterate_in_threads
from ztok_rag.llamaindex.token_counting import install_handle_tokenizer
from ztok_rag.selection.look_twice import LookTwice, first_look
from ztok_rag.storage.defaults import default_compressor, default_store
from ztok_rag.storage.handle import escape_handles, escape_handles_in_stream, split_prompt
from ztok_rag.storage.store import ZStore

if TYPE_CHECKING:
    from ztok_rag.codec.reader import Segment, ZReader


_GENERATION_ARGUMENTS = ("max_new_tokens", "max_tokens", "stop")


@dataclass(frozen=True)
class _Prompt:
    """A prompt cut at its handles.

    Attributes:
        segments: what the answer is read from, in reading order.
        sequences: of the handles, as they were before a second look.
        positions: input positions of all looks.
    """

    segments: list[Segment]
    sequences: list[ZSequence]
    positions: int


class ZTokenLLM(MadeAgain, CustomLLM):
    """Answers from any mix of text and handles, in every LlamaIndex component that takes an LLM.

    A handle raises `HandleError` if another store signed it, if it was altered, or if another
    checkpoint made it. So does text that only looks like a handle. `ZTokenPostprocessor` escapes
    such text in documents; use `escape_handles` for your own text.
    Decoding is greedy: `stop`, `max_new_tokens` and `max_tokens` are the only generation
    arguments, and every other is refused.

    A response has in `additional_kwargs["sources"]` where its text stands in the texts of the
    handles, as `locate` returns it: a list of `{"handle", "start", "end"}`. `handle` counts the
    handles of the prompt from 0, `start` and `end` are characters of the text that was compressed.
    """

    max_new_tokens: int = Field(default=64, gt=0, description="Longest answer, in tokens.")
    adapter: str | None = Field(
        default=READ,
        description="Reader adapter to answer with; None is the plain base LLM.",
    )
    copying: bool | CopyCosts | None = Field(
        default=None,
        description="Draw answers towards what the Z-tokens hold; None where they hold several.",
    )
    ask_first: bool = Field(
        default=True, description="Read what follows the last handle before everything, too."
    )
    look_twice: bool | LookTwice = Field(
        default=True,
        description="Read long context coarsely, then likely places finely; or how to do so.",
    )
    speculate: Speculate = Field(
        default=None,
        description="Confirm what may come next several tokens at a time: looked up, guessed by "
        "the write head, both; True is what is quickest, None does so in float32.",
    )

    _reader: ZReader | None = PrivateAttr(default=None)
    _store: ZStore | None = PrivateAttr(default=None)

    def __init__(
        self,
        *,
        reader: ZReader | None = None,
        store: ZStore | None = None,
        max_new_tokens: int = 64,
        adapter: str | None = READ,
        copying: bool | CopyCosts | None = None,
        ask_first: bool = True,
        look_twice: bool | LookTwice = True,
        speculate: Speculate = None,
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
            copying: draw answers towards what the Z-tokens hold; `None` does so where Z-tokens
                hold more than one token, and `CopyCosts` says how strongly.
            ask_first: read what follows the last handle, such as the question, before everything,
                too.
            look_twice: read long context coarsely, and then the places where the answer may stand
                finely; a `LookTwice` says how, `False` reads it once, as it is.
            speculate: read what may come next in one pass with what was written: the same answers,
                sooner. `"lookup"` looks it up where the answer goes on like the prompt, `"head"`
                lets the write head guess it, `"both"` does both; `True` is what is quickest. `None`
                does so in float32, where they are the same to the token.
            kwargs: fields of LlamaIndex's `LLM`, such as `system_prompt`.

        Raises:
            ZtokError: there is no argument of that name.
        """
        refuse_unknown_fields(type(self), kwargs)
        super().__init__(
            max_new_tokens=max_new_tokens,
            adapter=adapter,
            copying=copying,
            ask_first=ask_first,
            look_twice=look_twice,
            speculate=speculate,
            **kwargs,
        )
        self._reader = reader
        self._store = store
        install_handle_tokenizer()

    @classmethod
    def class_name(cls) -> str:
        return "ZTokenLLM"

    def _parts(self) -> dict[str, Any]:
        return {
            "reader": self._reader,
            "store": self._store,
        }

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
        return await in_thread(self._complete, prompt, formatted, kwargs)

    @llm_completion_callback()
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """As `complete`, piece by piece; each response has the text so far and the new piece.

        The last one has an empty piece, and the sources.
        """
        return self._stream(prompt, formatted, kwargs)

    @llm_completion_callback()
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """As `stream_complete`, in threads, so that the event loop goes on."""
        return iterate_in_threads(await in_thread(self._stream, prompt, formatted, kwargs))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`, in a thread."""
        assert self.messages_to_prompt is not None
        prompt = self.messages_to_prompt(messages)
        completion = await in_thread(self._complete, prompt, True, kwargs)
        return completion_response_to_chat_response(completion)

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """As `stream_chat`, in threads."""
        assert self.messages_to_prompt is not None
        prompt = self.messages_to_prompt(messages)
        stream = await in_thread(self._stream, prompt, True, kwargs)
        return iterate_in_threads(stream_completion_response_to_chat_response(stream))

    def _complete(self, prompt: str, formatted: bool, kwargs: dict[str, Any]) -> CompletionResponse:
        arguments = self._arguments(kwargs)
        read = self._read(prompt, formatted)
        (answer,) = self.reader.generate([read.segments], **arguments)
        text = escape_handles(answer.strip())
        return self._response(read, text, final=True)

    def _stream(
        self, prompt: str, formatted: bool, kwargs: dict[str, Any]
    ) -> CompletionResponseGen:
        arguments = self._arguments(kwargs)
        read = self._read(prompt, formatted)
        deltas = self.reader.stream(read.segments, **arguments)

        def respond() -> CompletionResponseGen:
            text = ""
            for delta in escape_handles_in_stream(_stripped(deltas)):
                text += delta
                yield self._response(read, text, delta=delta)
            yield self._response(read, text, delta="", final=True)

        return respond()

    def _response(
        self, read: _Prompt, text: str, *, delta: str | None = None, final: bool = False
    ) -> CompletionResponse:
        """A response with the answer so far; with its sources once it is whole."""
        sources = {}
        if final:
            sources["sources"] = locate(text, read.sequences, self.reader.tokenizer)
        # Token counts are where LlamaIndex's token counter looks for them.
        usage = {
            "prompt_tokens": read.positions,
            "completion_tokens": self.reader.count_tokens(text, adapter=None) if text else 0,
        }
        return CompletionResponse(
            text=text, delta=delta, additional_kwargs=sources, raw={"usage": usage}
        )

    def _read(self, prompt: str, formatted: bool) -> _Prompt:
        """The prompt cut at its handles, after a first look where it is looked at twice."""
        started = time.perf_counter()
        if not formatted and self.completion_to_prompt is not None:
            prompt = self.completion_to_prompt(prompt)
        reader = self.reader
        segments = split_prompt(
            prompt, self.store.secret, reader.fingerprint, reader.model.token_code
        )
        sequences = [s for s in segments if isinstance(s, ZSequence)]
        ms = 1000 * (time.perf_counter() - started)
        looks = self._looks(segments)
        positions = sum(map(self._positions, looks))
        if sequences:
            dispatcher.event(
                ZTokenSpliceEvent(
                    handles=len(sequences),
                    z_tokens=sum(
                        len(s) for look in looks for s in look if isinstance(s, ZSequence)
                    ),
                    prompt_tokens=positions,
                    ms=ms,
                )
            )
        return _Prompt(looks[-1], sequences, positions)

    def _looks(self, segments: list[Segment]) -> list[list[Segment]]:
        """What is read, one list of segments for each look; the answer is read from the last."""
        if self.adapter != READ or not self.look_twice:
            return [segments]
        look = LookTwice() if isinstance(self.look_twice, bool) else self.look_twice
        budget, rate = look.plan(segments)
        if not budget or self.reader.model.pointer is None:
            return [segments]
        return [
            first_look(segments, rate),
            look.apply(self.reader, segments, ask_first=self.ask_first),
        ]

    def _positions(self, segments: list[Segment]) -> int:
        return self.reader.count_tokens(segments, adapter=self.adapter, ask_first=self.ask_first)

    def _arguments(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the reader."""
        for name in kwargs:
            if name not in _GENERATION_ARGUMENTS:
                raise ZtokError(
                    f"ZTokenLLM decodes greedily and has no generation argument {name!r}; it "
                    f"takes {', '.join(_GENERATION_ARGUMENTS)}."
                )
        stop = kwargs.get("stop") or ()
        return {
            "adapter": self.adapter,
            "copy": self.copying,
            "ask_first": self.ask_first,
            "speculate": self.speculate,
            "stop": (stop,) if isinstance(stop, str) else tuple(stop),
            "max_new_tokens": kwargs.get("max_new_tokens")
            or kwargs.get("max_tokens")
            or self.max_new_tokens,
        }


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
