"""`ZTokenLLM`: a LlamaIndex LLM that reads the handles in its prompt as Z-tokens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.generic_utils import (
    astream_completion_response_to_chat_response,
    completion_response_to_chat_response,
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

from ztok_rag.codec.batcher import Written
from ztok_rag.codec.citations import locate
from ztok_rag.codec.copying import CopyCosts
from ztok_rag.codec.model import READ
from ztok_rag.codec.speculation import Speculate
from ztok_rag.errors import ZtokError
from ztok_rag.llamaindex.arguments import refuse_unknown_fields
from ztok_rag.llamaindex.chats import messages_to_prompt
from ztok_rag.llamaindex.cleaning import Cleaner
from ztok_rag.llamaindex.follow_ups import FollowUp
from ztok_rag.llamaindex.looks import Looks, look
from ztok_rag.llamaindex.remote import RemoteLLM
from ztok_rag.llamaindex.responses import (
    in_async_pieces,
    in_pieces,
    of_server,
    of_server_astream,
    of_server_stream,
)
from ztok_rag.llamaindex.sending import MadeAgain
from ztok_rag.llamaindex.settings import user_embedding
from ztok_rag.llamaindex.threads import in_thread
from ztok_rag.llamaindex.token_counting import install_handle_tokenizer
from ztok_rag.selection.look_twice import LookTwice
from ztok_rag.selection.sentences import SentenceScorer
from ztok_rag.storage.defaults import default_compressor, default_store
from ztok_rag.storage.handle import escape_handles
from ztok_rag.storage.store import ZStore

if TYPE_CHECKING:
    from ztok_rag.codec.reader import ZReader


_GENERATION_ARGUMENTS = ("max_new_tokens", "max_tokens", "min_new_tokens", "stop")

_STOP, _LENGTH = "stop", "length"

DEFAULT_MODEL = "ztok-rag"
"""Name under which a server has the reader of its store."""


class ZTokenLLM(MadeAgain, CustomLLM):
    """Answers from any mix of text and handles, in every LlamaIndex component that takes an LLM.

    A handle raises `HandleError` if another store signed it, if it was altered, or if another
    checkpoint made it. So does text that only looks like a handle. `ZTokenPostprocessor` escapes
    such text in documents; use `escape_handles` for your own text.
    Decoding is greedy: `stop`, `max_new_tokens`, `max_tokens` and `min_new_tokens` are the only
    generation arguments, and every other is refused.

    A response has in `additional_kwargs["sources"]` where its text stands in the texts of the
    handles, as `locate` returns it: a list of `{"handle", "start", "end"}`. `handle` counts the
    handles of the prompt from 0, `start` and `end` are characters of the text that was compressed.

    Async calls of one event loop or of several are answered together: see `Batcher`. One that is
    cancelled is no longer written.

    With `api_base`, a server that `ztok serve` started answers, and no model is loaded here. It
    must have the secret of the store that signed the handles. How to read is then the server's to
    say.
    """

    max_new_tokens: int = Field(default=64, gt=0, description="Longest answer, in tokens.")
    min_new_tokens: int = Field(default=1, gt=0, description="Shortest answer, in tokens.")
    no_repeat_ngram_size: int | None = Field(
        default=None,
        ge=0,
        description="No run of so many tokens is written twice; 0 allows it, None is 8 where "
        "Z-tokens hold several tokens.",
    )
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
        description="Read texts coarsely, then likely pieces finely; or how to do so.",
    )
    speculate: Speculate = Field(
        default=None,
        description="Confirm what may come next several tokens at a time: looked up, guessed by "
        "the write head, both; True is what is quickest, None does so in float32.",
    )

    api_base: str | None = Field(
        default=None,
        description="Address of a server's API that answers; None answers in this process.",
    )
    model: str = Field(default=DEFAULT_MODEL, description="Name of the model at that server.")
    timeout: float = Field(
        default=120.0, gt=0, description="Seconds to wait for a byte of that server."
    )
    context_window: int | None = Field(
        default=None,
        gt=0,
        description="Positions that the model at that server reads; None asks it, once.",
    )
    max_retries: int = Field(
        default=3, ge=0, description="How often to ask that server again while it is busy."
    )

    _reader: ZReader | None = PrivateAttr(default=None)
    _store: ZStore | None = PrivateAttr(default=None)
    _embed_model: BaseEmbedding | None = PrivateAttr(default=None)
    _scorer: SentenceScorer | None = PrivateAttr(default=None)
    _api_key: str | None = PrivateAttr(default=None)
    _server: RemoteLLM | None = PrivateAttr(default=None)

    def __init__(
        self,
        *,
        reader: ZReader | None = None,
        store: ZStore | None = None,
        embed_model: BaseEmbedding | None = None,
        max_new_tokens: int = 64,
        min_new_tokens: int = 1,
        no_repeat_ngram_size: int | None = None,
        adapter: str | None = READ,
        copying: bool | CopyCosts | None = None,
        ask_first: bool = True,
        look_twice: bool | LookTwice = True,
        speculate: Speculate = None,
        api_base: str | None = None,
        api_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Set up; a default reader is loaded when first needed.

        LlamaIndex's global tokenizer is wrapped, so that a handle counts as its Z-tokens. How it
        counts other text stays as it was.

        Args:
            reader: `None` is the default one, shared with `ZTokenPostprocessor`.
            store: whose handles are accepted; `None` is the default one, shared likewise. It keeps
                the embeddings of sentences, too.
            embed_model: embeds sentences and questions for the second look; `None` is
                `Settings.embed_model` where it was set, else `ztok_rag.default_embedding()`.
            max_new_tokens: longest answer, in tokens.
            min_new_tokens: shortest answer, in tokens. The reader was trained on short answers:
                ask for some 100 where a summary is wanted.
            no_repeat_ngram_size: no run of so many tokens is written twice, so that long answers
                do not go in circles; 0 allows it, `None` is 8 where Z-tokens hold more than one
                token.
            adapter: reader adapter to answer with; `None` is the plain base LLM.
            copying: draw answers towards what the Z-tokens hold; `None` does so where Z-tokens
                hold more than one token, and `CopyCosts` says how strongly.
            ask_first: read what follows the last handle, such as the question, before everything,
                too.
            look_twice: read texts that the question has not chosen from coarsely, and then the
                pieces where the answer may stand finely; a `LookTwice` says how, `False` reads them
                once, as they are.
            speculate: read what may come next in one pass with what was written: the same answers,
                sooner. `"lookup"` looks it up where the answer goes on like the prompt, `"head"`
                lets the write head guess it, `"both"` does both; `True` is what is quickest. `None`
                does so in float32, where they are the same to the token.
            api_base: address of the API of a `ztok serve` that answers, such as
                `http://127.0.0.1:8000/v1`; `None` answers in this process.
            api_key: that server's token; `None` is the environment's `ZTOK_API_KEY`.
            kwargs: `model`, `context_window`, `timeout` and `max_retries` of that server; and
                fields of LlamaIndex's `LLM`, such as `system_prompt`.

        Raises:
            ZtokError: there is no argument of that name, one does not go with `api_base`, or the
                shortest answer is longer than the longest.
        """
        refuse_unknown_fields(type(self), kwargs)
        if adapter == READ:
            kwargs.setdefault("messages_to_prompt", messages_to_prompt)
        super().__init__(
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            no_repeat_ngram_size=no_repeat_ngram_size,
            adapter=adapter,
            copying=copying,
            ask_first=ask_first,
            look_twice=look_twice,
            speculate=speculate,
            api_base=api_base,
            **kwargs,
        )
        if min_new_tokens > max_new_tokens:
            raise ZtokError(
                f"min_new_tokens is {min_new_tokens} and max_new_tokens {max_new_tokens}; the "
                "shortest answer cannot be longer than the longest."
            )
        self._reader = reader
        self._store = store
        self._embed_model = embed_model
        self._api_key = api_key
        if api_base is not None:
            self._refuse_own_reading()
            self._server = RemoteLLM(api_base, self.model, api_key, self.timeout, self.max_retries)
        elif api_key is not None:
            raise ZtokError("api_key is the token of a server; give its api_base, too.")
        install_handle_tokenizer()

    @classmethod
    def class_name(cls) -> str:
        return "ZTokenLLM"

    def _parts(self) -> dict[str, Any]:
        return {
            "reader": self._reader,
            "store": self._store,
            "embed_model": self._embed_model or user_embedding(),
            "api_key": self._api_key,
        }

    @property
    def reader(self) -> ZReader:
        """The reader in use; the default one is loaded when first asked for.

        Raises:
            ZtokError: a server answers.
        """
        if self._server is not None:
            raise ZtokError(
                f"this ZTokenLLM asks {self._server.api_base} and has no reader of its own; make "
                "one without api_base."
            )
        if self._reader is None:
            self._reader = default_compressor().reader
        return self._reader

    @property
    def store(self) -> ZStore:
        """The store whose handles are accepted; the default one is opened when first asked for.

        Raises:
            ZtokError: a server answers.
        """
        if self._server is not None:
            raise ZtokError(
                f"this ZTokenLLM asks {self._server.api_base}, which has the store; name the store "
                "that you have."
            )
        if self._store is None:
            self._store = default_store()
        return self._store

    @property
    def scorer(self) -> SentenceScorer:
        """Scores sentences for the second look; its model is loaded when one is first taken."""
        if self._scorer is None:
            self._scorer = SentenceScorer(
                self.reader.tokenizer, self._embed_model or user_embedding(), self.store
            )
        return self._scorer

    @property
    def metadata(self) -> LLMMetadata:
        if self._server is not None:
            window = self.context_window or self._server.info.get("context_window")
            return LLMMetadata(
                context_window=window or LLMMetadata().context_window,
                num_output=self.max_new_tokens,
                model_name=self._name,
            )
        reader = self.reader
        return LLMMetadata(
            context_window=reader.max_positions,
            num_output=self.max_new_tokens,
            model_name=self._name,
        )

    def to_payload(self) -> dict[str, Any]:
        """What events say of this LLM; no model is loaded for it, and no server asked."""
        return {"class_name": self.class_name(), "model_name": self._name}

    @property
    def _name(self) -> str:
        """With the reader's fingerprint, where it is known by now."""
        if self._server is not None:
            return self._server.name
        return "ztok-rag" if self._reader is None else f"ztok-rag:{self._reader.fingerprint}"

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
                `max_tokens`, the longest answer; `min_new_tokens`, the shortest.

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
        """As `complete`, together with what else is asked meanwhile; the event loop goes on."""
        return await self._acomplete(prompt, formatted, kwargs)

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
        """As `stream_complete`, together with what else is asked; the event loop goes on."""
        return await self._astream(prompt, formatted, kwargs)

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """As `chat`, together with what else is asked; the event loop goes on."""
        assert self.messages_to_prompt is not None
        completion = await self._acomplete(self.messages_to_prompt(messages), True, kwargs)
        return completion_response_to_chat_response(completion)

    @llm_chat_callback()
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """As `stream_chat`, together with what else is asked; the event loop goes on."""
        assert self.messages_to_prompt is not None
        stream = await self._astream(self.messages_to_prompt(messages), True, kwargs)
        return astream_completion_response_to_chat_response(stream)

    def _complete(self, prompt: str, formatted: bool, kwargs: dict[str, Any]) -> CompletionResponse:
        if self._server is not None:
            asked = self._formatted(prompt, formatted)
            return of_server(self._server.complete(asked, self._sent(kwargs)))
        if (follow_up := self._follow_up(prompt, formatted)) is not None:
            return self._standalone(follow_up, kwargs)
        read, arguments = self._prepare(prompt, formatted, kwargs)
        (answer,) = self.reader.generate([read.segments], likely=[read.likely], **arguments)
        return self._whole(read, answer)

    async def _acomplete(
        self, prompt: str, formatted: bool, kwargs: dict[str, Any]
    ) -> CompletionResponse:
        if self._server is not None:
            asked = self._formatted(prompt, formatted)
            return of_server(await self._server.acomplete(asked, self._sent(kwargs)))
        if (follow_up := self._follow_up(prompt, formatted)) is not None:
            return await in_thread(self._standalone, follow_up, kwargs)
        read, arguments = await in_thread(self._prepare, prompt, formatted, kwargs)
        written = await self.reader.batcher.generate(read.segments, likely=read.likely, **arguments)
        return await in_thread(self._whole, read, written.text, written.ended)

    def _stream(
        self, prompt: str, formatted: bool, kwargs: dict[str, Any]
    ) -> CompletionResponseGen:
        if self._server is not None:
            asked = self._formatted(prompt, formatted)
            return of_server_stream(self._server.stream(asked, self._sent(kwargs)))
        if (follow_up := self._follow_up(prompt, formatted)) is not None:
            return in_pieces(self._standalone(follow_up, kwargs))
        read, arguments = self._prepare(prompt, formatted, kwargs)
        pieces = self.reader.stream(read.segments, likely=read.likely, **arguments)

        def respond() -> CompletionResponseGen:
            text, cleaner = "", Cleaner()
            for piece in pieces:
                if delta := cleaner.take(piece):
                    text += delta
                    yield self._response(read, text, delta=delta)
            if delta := cleaner.rest():
                text += delta
                yield self._response(read, text, delta=delta)
            yield self._response(read, text, delta="", final=True)

        return respond()

    async def _astream(
        self, prompt: str, formatted: bool, kwargs: dict[str, Any]
    ) -> CompletionResponseAsyncGen:
        if self._server is not None:
            asked = self._formatted(prompt, formatted)
            return of_server_astream(self._server.astream(asked, self._sent(kwargs)))
        if (follow_up := self._follow_up(prompt, formatted)) is not None:
            return in_async_pieces(await in_thread(self._standalone, follow_up, kwargs))
        read, arguments = await in_thread(self._prepare, prompt, formatted, kwargs)

        async def respond() -> CompletionResponseAsyncGen:
            text, cleaner, ended = "", Cleaner(), True
            stream = self.reader.batcher.stream(read.segments, likely=read.likely, **arguments)
            async with aclosing(stream) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Written):
                        ended = piece.ended
                    elif delta := cleaner.take(piece):
                        text += delta
                        yield self._response(read, text, delta=delta)
            if delta := cleaner.rest():
                text += delta
                yield self._response(read, text, delta=delta)
            yield await in_thread(self._response, read, text, delta="", final=True, ended=ended)

        return respond()

    def _follow_up(self, prompt: str, formatted: bool) -> FollowUp | None:
        """The question that a chat engine wants rewritten, which the trained reader cannot do."""
        return FollowUp.of(self._formatted(prompt, formatted)) if self.adapter == READ else None

    def _standalone(self, follow_up: FollowUp, kwargs: dict[str, Any]) -> CompletionResponse:
        """A follow-up question as one that stands alone; no LLM runs."""
        self._arguments(kwargs)  # says so if one is not known
        reader = self.reader
        question = follow_up.standalone(
            self.scorer.embed_model, reader.tokenizer, reader.model.token_code.rarity
        )
        usage = {"prompt_tokens": 0, "completion_tokens": 0}
        raw = {"usage": usage, "finish_reason": _STOP}
        return CompletionResponse(text=question, additional_kwargs={"sources": []}, raw=raw)

    def _whole(self, read: Looks, answer: str, ended: bool | None = None) -> CompletionResponse:
        return self._response(read, escape_handles(answer.strip()), final=True, ended=ended)

    def _response(
        self,
        read: Looks,
        text: str,
        *,
        delta: str | None = None,
        final: bool = False,
        ended: bool | None = None,
    ) -> CompletionResponse:
        """A response with the answer so far; with its sources once it is whole.

        Where it is known how the answer ended, `raw["finish_reason"]` says so in OpenAI's words.
        """
        sources = {}
        if final:
            sources["sources"] = locate(text, read.sequences, self.reader.tokenizer)
        # Token counts are where LlamaIndex's token counter looks for them.
        usage = {
            "prompt_tokens": read.positions,
            "completion_tokens": self.reader.count_tokens(text, adapter=None) if text else 0,
        }
        raw: dict[str, Any] = {"usage": usage}
        if ended is not None:
            raw["finish_reason"] = _STOP if ended else _LENGTH
        return CompletionResponse(text=text, delta=delta, additional_kwargs=sources, raw=raw)

    def _formatted(self, prompt: str, formatted: bool) -> str:
        if formatted or self.completion_to_prompt is None:
            return prompt
        return self.completion_to_prompt(prompt)

    def _prepare(
        self, prompt: str, formatted: bool, kwargs: dict[str, Any]
    ) -> tuple[Looks, dict[str, Any]]:
        """A prompt as it is read, which has room for its answer, and arguments of the reader."""
        arguments = self._arguments(kwargs)
        read = look(
            self._formatted(prompt, formatted),
            self.reader,
            self.store.secret,
            adapter=self.adapter,
            ask_first=self.ask_first,
            look_twice=self.look_twice,
            copying=self.copying,
            scorer=self.scorer,
        )
        self.reader.check_room(read.last, arguments["max_new_tokens"])
        return read, arguments

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
            "min_new_tokens": kwargs.get("min_new_tokens") or self.min_new_tokens,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
        }

    def _sent(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a server."""
        arguments = self._arguments(kwargs)
        sent: dict[str, Any] = {"max_tokens": arguments["max_new_tokens"]}
        if arguments["min_new_tokens"] > 1:
            sent["min_tokens"] = arguments["min_new_tokens"]
        return {**sent, "stop": list(arguments["stop"])} if arguments["stop"] else sent

    def _refuse_own_reading(self) -> None:
        """Make sure that nothing was asked for that a server decides."""
        own = (
            "no_repeat_ngram_size", "adapter", "copying", "ask_first", "look_twice", "speculate",
        )  # fmt: skip
        changed = [n for n in own if getattr(self, n) != type(self).model_fields[n].default]
        changed += [
            n for n in ("reader", "store", "embed_model") if getattr(self, f"_{n}") is not None
        ]
        if changed:
            raise ZtokError(
                f"with api_base, a server answers, and {changed[0]!r} is its own to choose; leave "
                "it out."
            )
