"""Bodies of requests to the server's application, and the check of its answers.

The application, its handles, its store and its index are real. The LLM's answer is replaced by the
end of the prompt, and the relevance of a token by that of its word: what is under test is all that
is done with what an asker sends.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from breakage.world import TableCompressor, World
from ztok_rag.codec.batcher import Written
from ztok_rag.codec.pieces import before
from ztok_rag.codec.reader import Prompt, ZReader
from ztok_rag.errors import ZtokError
from ztok_rag.serving.app import create_app
from ztok_rag.serving.limits import Limits
from ztok_rag.storage.handle import encode_handle

_MODEL, _INDEX = "ztok-rag", "corpus"
_POSITIONS = 2048  # that the reader reads
_ECHO = 10  # tokens of an answer
_PARTS = b"\0"  # between the values of a body that is put together
_COMPLETIONS, _CHAT, _RAG = (
    "/v1/completions", "/v1/chat/completions", f"/v1/indexes/{_INDEX}/rag"
)  # fmt: skip
_FIELDS = {
    _COMPLETIONS: (
        "prompt", "stop", "stream", "max_tokens", "stream_options", "logit_bias", "metadata",
    ),
    _CHAT: ("messages", "stop", "stream", "max_completion_tokens", "user", "tools", "seed"),
    _RAG: ("question", "similarity_top_k", "max_tokens"),
}  # fmt: skip
_ERROR = {"message", "type", "param", "code"}


class _Echo:
    """A `Batcher` that answers with the last tokens of a prompt."""

    def __init__(self, reader: ZReader) -> None:
        self._reader = reader

    async def generate(
        self, prompt: Prompt, *, stop: Sequence[str] = (), **settings: Any
    ) -> Written:
        said = [prompt] if isinstance(prompt, str) else [s for s in prompt if isinstance(s, str)]
        ids = self._reader._ids("".join(said), settings["adapter"])
        answer = self._reader.tokenizer.decode(ids[-min(_ECHO, settings["max_new_tokens"]) :])
        return Written(before(answer, stop), True)

    async def stream(
        self, prompt: Prompt, *, stop: Sequence[str] = (), **settings: Any
    ) -> AsyncGenerator[str | Written, None]:
        written = await self.generate(prompt, stop=stop, **settings)
        half = len(written.text) // 2
        yield written.text[:half]
        yield written.text[half:]
        yield written


class _EchoReader(ZReader):
    """A reader without its LLM."""

    @property
    def batcher(self) -> Any:
        return _Echo(self)


class _EchoCompressor(TableCompressor):
    """A compressor whose reader has no LLM."""

    def __init__(self) -> None:
        super().__init__()
        self.model.base = SimpleNamespace(
            tokenizer=self.model.base.tokenizer,
            max_positions=_POSITIONS,
            device=torch.device("cpu"),
            embeddings=lambda ids: torch.zeros(*ids.shape, 1),
        )
        self.model.selector = _WordWeights()
        self.model.tells_places = True
        self.model.finder = self.model.pointer = None

    @property
    def reader(self) -> ZReader:
        return _EchoReader(self.model)


class _WordWeights:
    """A selector: a token's relevance is the weight that its word has in the question."""

    def encode(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return tokens

    def __call__(self, texts: Tensor, hints: Tensor, *others: Tensor) -> Tensor:
        return hints[..., 1]


class Web:
    """An application in this process, which is asked without a network."""

    def __init__(self, folder: Path) -> None:
        """Build an index in a folder, and serve it."""
        world = World(0, documents=3)
        world.compressor = _EchoCompressor()
        index = self._index = world.build(folder / "index", world.ids)
        llm = index.llm()
        limits = Limits(body_bytes=3000, prompt_tokens=1000, answer_tokens=100, prompts=3)
        self._app = create_app({_MODEL: llm}, {_INDEX: index}, limits=limits)
        self._loop = asyncio.new_event_loop()
        own = next(iter(world.truth.values())).at(8.0, world.compressor.slots)
        self._handle = encode_handle(own, index.store.secret)
        logging.getLogger("ztok_rag.serving").setLevel(logging.ERROR)

    def seeds(self) -> list[bytes]:
        """Bodies that are answered, as they are and put together."""
        text = f"{self._handle}\n\nQuestion: Which harbour?"
        chat = [{"role": "system", "content": "Short."}, {"role": "user", "content": text}]
        parts = [{"role": "user", "content": [{"type": "text", "text": text}]}]
        usage = {"include_usage": True}
        made: list[tuple[str, dict[str, Any]]] = [
            (_COMPLETIONS, {"prompt": text, "temperature": 0.5, "n": 1, "echo": False}),
            (_COMPLETIONS, {"prompt": ["One,", text], "max_tokens": 7, "logit_bias": {"7": 0}}),
            (_COMPLETIONS, {"prompt": text, "stream": True, "stream_options": usage}),
            (_CHAT, {"messages": chat, "stop": ["\n", "x"], "response_format": {"type": "text"}}),
            (_CHAT, {"messages": parts, "stream": True, "max_completion_tokens": 9, "tools": []}),
            (_RAG, {"question": "Which lamp?", "similarity_top_k": 2, "max_tokens": 9}),
        ]
        found = []
        for path, body in made:
            number = list(_FIELDS).index(path)
            model = {} if path == _RAG else {"model": _MODEL}
            found.append(bytes([number]) + json.dumps({**model, **body}).encode())
            values = [json.dumps(body[name]) if name in body else "" for name in _FIELDS[path]]
            found.append(bytes([128 + number]) + _PARTS.join(v.encode() for v in values))
        return [*found, bytes([128]) + "see ⟦ztok:9:abc".encode(), bytes([130]) + b"Who \xff?"]

    def ask(self, data: bytes) -> None:
        """Send a body, and check what comes back.

        Args:
            data: the first byte chooses the route, and whether the others are the body, or values
                of its fields; the others.

        Raises:
            AssertionError: the status is 500 or more, or an answer or an error is not of OpenAI's
                shape.
        """
        first, rest = (data[0], data[1:]) if data else (0, b"")
        path = list(_FIELDS)[first % 128 % len(_FIELDS)]
        body = rest if first < 128 else _put_together(path, rest)
        try:
            status, content_type, answer = self._loop.run_until_complete(self._post(path, body))
        except ZtokError as error:
            raise AssertionError("an error came out of the application") from error
        assert 200 <= status < 500, (status, answer)
        if status >= 400:
            _check_error(json.loads(answer))
        elif content_type.startswith("text/event-stream"):
            *lines, end, empty = answer.decode().split("\n\n")
            assert (end, empty) == ("data: [DONE]", ""), answer
            for line in lines:
                assert "choices" in json.loads(line.removeprefix("data: ")), line
        else:
            assert json.loads(answer)["object"], answer

    def close(self) -> None:
        """Close the index's store and the event loop."""
        self._index.close()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    async def _post(self, path: str, body: bytes) -> tuple[int, str, bytes]:
        """Status, type and body of the answer."""
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
            "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
            "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
            "headers": [(b"host", b"server"), (b"content-type", b"application/json")],
        }  # fmt: skip
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[Any] = []

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await asyncio.Event().wait()  # the asker stays until the answer is there

        async def send(message: Any) -> None:
            sent.append(message)

        await self._app(scope, receive, send)
        start, *parts = sent
        headers = dict(start["headers"])
        content = b"".join(part.get("body", b"") for part in parts)
        return start["status"], headers.get(b"content-type", b"").decode(), content


def _put_together(path: str, data: bytes) -> bytes:
    """A body of JSON whose fields have values that were given, as JSON or else as text."""
    body: dict[str, Any] = {} if path == _RAG else {"model": _MODEL}
    for name, value in zip(_FIELDS[path], data.split(_PARTS), strict=False):
        if value:
            try:
                body[name] = json.loads(value)
            except (ValueError, RecursionError):
                # Bytes that are no text become lone surrogates, which JSON can hold.
                body[name] = value.decode("utf-8", "surrogateescape")
    return json.dumps(body).encode()


def _check_error(answer: Any) -> None:
    error = answer["error"]
    assert error.keys() == _ERROR, answer
    assert isinstance(error["message"], str) and error["message"], answer
    assert isinstance(error["type"], str), answer
