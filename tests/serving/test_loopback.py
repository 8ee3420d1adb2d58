"""A server on a socket of this machine: its clients, its end, and askers who go away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn
from conftest import BAKERY, PASSAGE
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from typer.testing import CliRunner

from ztok_rag import (
    HandleError,
    ZCompressor,
    ZStore,
    ZTokenIndex,
    ZTokenLLM,
    ZTokenPostprocessor,
    ZtokError,
    default_embedding,
)
from ztok_rag.cli.root import app
from ztok_rag.codec.generation import GreedyDecoder
from ztok_rag.codec.reader import ZReader
from ztok_rag.errors import ServerError
from ztok_rag.serving.app import create_app
from ztok_rag.serving.limits import Limits
from ztok_rag.serving.run import listen, serve
from ztok_rag.serving.tokens import Tokens, check_reachable, is_loopback, load_tokens
from ztok_rag.storage.handle import encode_handles

pytestmark = pytest.mark.usefixtures("tokenizer_left_as_it_was")

TOKEN = "a-token-of-these-tests"
LIMITS = Limits(requests=4, body_seconds=1.0, shutdown_seconds=20)
QUESTION = "\n\nQuestion: Who was the last keeper?\nAnswer:"


@dataclass
class Served:
    """A server in a thread."""

    address: str
    llm: ZTokenLLM
    server: uvicorn.Server
    thread: threading.Thread

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {TOKEN}"}

    def remote(self, **arguments: object) -> ZTokenLLM:
        given = {"api_base": self.address, "api_key": TOKEN, "max_new_tokens": 8, **arguments}
        return ZTokenLLM(**given)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)


@contextlib.contextmanager
def served(llm: ZTokenLLM, **indexes: ZTokenIndex) -> Iterator[Served]:
    served_app = create_app({"ztok-rag": llm}, indexes, tokens=Tokens([TOKEN]), limits=LIMITS)
    begun: list[uvicorn.Server] = []
    with listen("127.0.0.1", 0) as opened:
        port = opened.getsockname()[1]
        thread = threading.Thread(
            target=serve, args=(served_app, opened, LIMITS), kwargs={"started": begun.append}
        )
        thread.start()
        until(lambda: bool(begun) and begun[0].started)
        running = Served(f"http://127.0.0.1:{port}/v1", llm, begun[0], thread)
        try:
            yield running
        finally:
            running.stop()
    assert not thread.is_alive()


def until(holds: object, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not come about in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZStore]:
    with ZStore(tmp_path_factory.mktemp("kept") / "store") as opened:
        yield opened


@pytest.fixture(scope="module")
def server(compressor: ZCompressor, kept: ZStore) -> Iterator[Served]:
    llm = ZTokenLLM(reader=compressor.reader, store=kept, max_new_tokens=8)
    with served(llm) as running:
        yield running


@pytest.fixture
def prompt(compressor: ZCompressor, kept: ZStore) -> str:
    zs = compressor.compress([BAKERY, PASSAGE], 4)
    return "\n\n".join(encode_handles(z, kept.secret) for z in zs) + QUESTION


def test_a_client_llm_answers_as_the_reader_does(server: Served, prompt: str) -> None:
    here, there = server.llm, server.remote()
    wanted = here.complete(prompt)
    got = there.complete(prompt)
    assert (got.text, got.additional_kwargs) == (wanted.text, wanted.additional_kwargs)
    assert wanted.raw["usage"].items() <= got.raw["usage"].items()
    longer = there.complete(prompt, min_new_tokens=8).text
    assert longer == here.complete(prompt, min_new_tokens=8).text != wanted.text
    *pieces, last = there.stream_complete(prompt)
    assert "".join(piece.delta or "" for piece in pieces) == last.text == wanted.text
    assert last.additional_kwargs == wanted.additional_kwargs and last.delta == ""

    async def later() -> None:
        assert (await there.acomplete(prompt)).text == wanted.text
        messages = [ChatMessage(role="user", content=prompt)]
        chatted = here.chat(messages).message.content
        assert (await there.achat(messages)).message.content == chatted
        streamed = [r async for r in await there.astream_complete(prompt, stop="erg")]
        assert streamed[-1].text == here.complete(prompt, stop="erg").text == "Tomas B"

    asyncio.run(later())
    assert there.metadata.context_window == here.metadata.context_window
    assert there.metadata.model_name == here.metadata.model_name
    copied = ZTokenLLM.from_dict(there.to_dict())
    assert copied.api_base == server.address and TOKEN not in str(there.to_dict())


def test_llama_index_answers_through_it(
    server: Served, compressor: ZCompressor, kept: ZStore
) -> None:
    documents = [Document(text=PASSAGE), Document(text=BAKERY)]
    index = VectorStoreIndex.from_documents(documents, embed_model=default_embedding())
    postprocessor = ZTokenPostprocessor(compressor=compressor, store=kept)
    like = OpenAILike(
        model="ztok-rag", api_base=server.address, api_key=TOKEN, context_window=8192, max_tokens=8
    )
    for llm in (server.remote(), like):
        for streaming in (False, True):
            engine = index.as_query_engine(
                llm=llm, node_postprocessors=[postprocessor], streaming=streaming
            )
            assert "Tomas Berg" in str(engine.query("Who was the last keeper?"))


def test_open_ai_like_chats(server: Served, prompt: str) -> None:
    like = OpenAILike(
        model="ztok-rag", api_base=server.address, api_key=TOKEN, is_chat_model=True, max_tokens=8
    )
    messages = [
        ChatMessage(role="system", content="Answer in a few words."),
        ChatMessage(role="user", content=prompt),
    ]
    wanted = server.llm.chat(messages).message.content
    assert like.chat(messages).message.content == wanted
    assert [*like.stream_chat(messages)][-1].message.content == wanted


def test_a_client_llm_says_what_is_wrong(
    server: Served, compressor: ZCompressor, tmp_path: Path, prompt: str
) -> None:
    with ZStore(tmp_path / "other") as other:
        (z,) = compressor.compress([PASSAGE], 4)
        foreign = encode_handles(z, other.secret) + QUESTION
    with pytest.raises(HandleError, match="secret"):
        server.remote().complete(foreign)
    with pytest.raises(HandleError, match="secret"):
        list(server.remote().stream_complete(foreign))
    with pytest.raises(ServerError, match=r"token.*api_key"):
        server.remote(api_key="wrong").complete("Hi")
    with pytest.raises(ServerError, match="no model 'other'"):
        server.remote(model="other").complete("Hi")
    with pytest.raises(ServerError, match="Not Found"):
        server.remote(api_base=server.address + "/v2").complete("Hi")
    with pytest.raises(ServerError, match=r"no answer from http://127\.0\.0\.1:9"):
        ZTokenLLM(api_base="http://127.0.0.1:9/v1").complete("Hi")
    with pytest.raises(ZtokError, match="address"):
        ZTokenLLM(api_base="127.0.0.1:8000")
    with pytest.raises(ZtokError, match="'look_twice' is its own"):
        ZTokenLLM(api_base=server.address, look_twice=False)
    with pytest.raises(ZtokError, match="'store' is its own"):
        ZTokenLLM(api_base=server.address, store=server.llm.store)
    with pytest.raises(ZtokError, match="give its api_base"):
        ZTokenLLM(api_key=TOKEN)
    with pytest.raises(ZtokError, match="no reader"):
        _ = server.remote().reader


@contextlib.contextmanager
def stopped_at_the_second_pass(
    reader: ZReader, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], bool]]:
    """Within, the first answer asked for waits before its second pass; says whether it does."""
    gate, passes, advance = threading.Event(), 0, reader.advance

    def gated(decoder: GreedyDecoder) -> None:
        nonlocal passes
        passes += 1
        assert passes == 1 or gate.wait(60)
        advance(decoder)

    monkeypatch.setattr(reader, "advance", gated)
    try:
        yield lambda: passes > 1
    finally:
        gate.set()


def go_away(server: Served, path: str, body: dict[str, object]) -> None:
    """Ask, read the first line of an answer if one comes, and close the connection."""
    with (
        contextlib.suppress(httpx.ReadTimeout),
        httpx.stream(
            "POST", server.address + path, json=body, headers=server.headers, timeout=2.0
        ) as response,
    ):
        next(response.iter_lines())


@pytest.mark.parametrize("stream", [False, True])
def test_askers_who_go_away_give_their_places_free(
    server: Served, prompt: str, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = server.llm.reader
    batcher, gone = reader.batcher, reader.batcher.stats.cancelled
    body = {
        "model": "ztok-rag", "prompt": "One, two, three, four, five,", "max_tokens": 1000,
        "stream": stream,
    }  # fmt: skip
    with stopped_at_the_second_pass(reader, monkeypatch) as is_stopped:
        go_away(server, "/completions", body)
        until(is_stopped)
        until(lambda: all(r.cancelled for group in batcher._groups for r in group.requests))
    until(lambda: batcher.stats.cancelled > gone and batcher.stats.writing == 0)
    assert server.remote().complete(prompt).text == server.llm.complete(prompt).text


def test_askers_of_an_index_who_go_away_give_their_places_free(
    compressor: ZCompressor, kept: ZStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [Document(text=PASSAGE), Document(text=BAKERY)]
    llm = ZTokenLLM(reader=compressor.reader, store=kept, max_new_tokens=8)
    batcher, gone = compressor.reader.batcher, compressor.reader.batcher.stats.cancelled
    body = {"question": "Who was the last keeper?", "stream": True, "max_tokens": 1000}
    with (
        ZTokenIndex.build(documents, tmp_path / "index", compressor=compressor) as index,
        served(llm, corpus=index) as running,
    ):
        with stopped_at_the_second_pass(compressor.reader, monkeypatch) as is_stopped:
            go_away(running, "/indexes/corpus/rag", body)
            until(is_stopped)
            until(lambda: all(r.cancelled for group in batcher._groups for r in group.requests))
        until(lambda: batcher.stats.cancelled > gone and batcher.stats.writing == 0)
        url = f"{running.address}/indexes/corpus/rag"
        again = httpx.post(url, json={**body, "max_tokens": 8}, headers=running.headers, timeout=60)
        assert "Tomas Berg" in "".join(
            json.loads(line[6:]).get("delta", {}).get("answer", "")
            for line in again.text.split("\n\n")
            if line and "[DONE]" not in line
        )


def test_a_busy_server_is_asked_again(server: Served) -> None:
    async def ask_all() -> list[str]:
        llm = server.remote(max_new_tokens=2, max_retries=8)
        got = await asyncio.gather(*(llm.acomplete(f"{n}, {n + 1},") for n in range(10)))
        return [response.text for response in got]

    wanted = [server.llm.complete(f"{n}, {n + 1},", max_tokens=2).text for n in range(10)]
    assert asyncio.run(ask_all()) == wanted


def test_a_body_that_does_not_arrive(server: Served) -> None:
    port = int(server.address.split(":")[2].removesuffix("/v1"))
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(head.encode())
        assert b" 408 " in connection.recv(1000)


def test_requests_under_way_are_finished_at_the_end(
    compressor: ZCompressor, kept: ZStore, prompt: str
) -> None:
    llm = ZTokenLLM(reader=compressor.reader, store=kept, max_new_tokens=8)
    wanted = llm.complete(prompt).text
    got: list[str] = []
    with served(llm) as running:
        asking = threading.Thread(target=lambda: got.append(running.remote().complete(prompt).text))
        asking.start()
        until(lambda: llm.reader.batcher.stats.writing > 0)
        running.stop()
        asking.join(20)
    assert got == [wanted]
    with pytest.raises(ServerError, match="no answer"):
        running.remote(max_retries=0).complete(prompt)


def test_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZTOK_API_KEY", raising=False)
    assert load_tokens(None) is None
    file = tmp_path / "tokens"
    file.write_text(f"# of the team\n\n{TOKEN}\nanother-token-of-them\n")
    tokens = load_tokens(file)
    assert tokens is not None and tokens.accepts(f"Bearer {TOKEN}".encode())
    assert tokens.accepts(b"Bearer another-token-of-them")
    for wrong in (b"", b"Bearer ", b"Bearer # of the team", TOKEN.encode(), b"Basic YTpi"):
        assert not tokens.accepts(wrong)
    monkeypatch.setenv("ZTOK_API_KEY", TOKEN)
    assert load_tokens(None).accepts(f"Bearer {TOKEN}".encode())
    for text, said in (("", "no token"), ("short\n", "at least 16"), (f"{TOKEN} {TOKEN}", "white")):
        file.write_text(text)
        with pytest.raises(ZtokError, match=said):
            load_tokens(file)
    with pytest.raises(ZtokError, match="cannot read"):
        load_tokens(tmp_path / "missing")
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.8.9.1", "::1")))
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org"):
        assert not is_loopback(host)
        check_reachable(host, tokens)
        with pytest.raises(ZtokError, match="can be reached from other machines"):
            check_reachable(host, None)


def test_the_command_refuses_before_it_loads_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: object, **more: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("ztok_rag.cli.serve.load_compressor", load)
    monkeypatch.delenv("ZTOK_API_KEY", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, said in (
            (("--host", "0.0.0.0"), "no token"),
            (("--port", port), "cannot listen"),
            (("--index", "a b=x"), "no name for an index"),
            (("--index", "x/a", "--index", "y/a"), "two indexes"),
            (("--index", str(tmp_path)), "index"),
            (("--tls-key", "x"), "--tls-certificate"),
            (("--store", str(tmp_path / "none")), "no store"),
            (("--store", "ftp://127.0.0.1/0"), "redis://"),
            (("--store", "redis://127.0.0.1:1/0"), "127.0.0.1:1"),
        ):
            error = CliRunner().invoke(app, ["serve", *arguments]).exception
            assert isinstance(error, ZtokError) and said in str(error), error
