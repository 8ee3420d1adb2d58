"""The server's answers are those of `ZTokenLLM`, and what it does not answer it says why."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
from conftest import BAKERY, PASSAGE
from fastapi import FastAPI
from llama_index.core import Document
from llama_index.core.base.llms.types import ChatMessage

from ztok_rag import ZCompressor, ZStore, ZTokenIndex, ZTokenLLM, ZtokError, find_citations
from ztok_rag.serving.app import create_app
from ztok_rag.serving.limits import Limits
from ztok_rag.serving.tokens import Tokens
from ztok_rag.storage.handle import encode_handles

pytestmark = pytest.mark.usefixtures("tokenizer_left_as_it_was")

MODEL = "ztok-rag"
TOKEN = "a-token-of-these-tests"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
QUESTION = "Who was the last keeper?"
LIMITS = Limits(body_bytes=20_000, prompt_tokens=400, answer_tokens=32, requests=8, prompts=3)


@pytest.fixture
def llm(compressor: ZCompressor, store: ZStore) -> ZTokenLLM:
    return ZTokenLLM(reader=compressor.reader, store=store, max_new_tokens=8)


@pytest.fixture
def app(llm: ZTokenLLM) -> FastAPI:
    return create_app({MODEL: llm}, tokens=Tokens([TOKEN]), limits=LIMITS)


@pytest.fixture(scope="module")
def index(
    compressor: ZCompressor, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ZTokenIndex]:
    documents = [
        Document(text=PASSAGE, id_="lighthouse", metadata={"file": "lighthouse.txt"}),
        Document(text=BAKERY, id_="bakery"),
    ]
    folder = tmp_path_factory.mktemp("served")
    with ZTokenIndex.build(documents, folder / "index", compressor=compressor) as built:
        yield built


@pytest.fixture
def prompt(compressor: ZCompressor, store: ZStore) -> str:
    zs = compressor.compress([BAKERY, PASSAGE], 4)
    handles = "\n\n".join(encode_handles(z, store.secret) for z in zs)
    return f"{handles}\n\nQuestion: {QUESTION}\nAnswer:"


def ask(app: FastAPI, use: Callable[[httpx.AsyncClient], Awaitable[Any]], **options: Any) -> Any:
    """What a use of a client of an app returns."""

    async def run() -> Any:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        given = {"base_url": "http://server", "headers": HEADERS, "timeout": 60, **options}
        async with httpx.AsyncClient(transport=transport, **given) as client:
            return await use(client)

    return asyncio.run(run())


def post(app: FastAPI, path: str, body: Any, **options: Any) -> httpx.Response:
    if isinstance(body, bytes):
        headers = {**HEADERS, "Content-Type": "application/json"}
        return ask(app, lambda c: c.post(path, content=body, headers=headers), **options)
    return ask(app, lambda c: c.post(path, json=body), **options)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream that came to its end."""
    *lines, end = [line for line in response.text.split("\n\n") if line]
    assert end == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def refused(response: httpx.Response, status: int, *said: str) -> dict[str, Any]:
    """The error of a response, in OpenAI's form."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert all(part in error["message"] for part in said), error
    return dict(error)


def test_completions_are_those_of_the_llm(app: FastAPI, llm: ZTokenLLM, prompt: str) -> None:
    wanted = llm.complete(prompt)
    body = {"model": MODEL, "prompt": prompt, "temperature": 0.1}
    answer = post(app, "/v1/completions", body).json()
    (choice,) = answer["choices"]
    assert choice["text"] == wanted.text and "Tomas Berg" in wanted.text
    assert choice["finish_reason"] == "stop"
    usage = wanted.raw["usage"]
    assert answer["usage"] == {**usage, "total_tokens": sum(usage.values())}
    # Z-tokens are counted as one position each.
    assert usage["prompt_tokens"] < llm.reader.count_tokens(PASSAGE + BAKERY) * 0.75
    assert answer["ztok"]["sources"] == wanted.additional_kwargs["sources"] != []

    body |= {"stream": True, "stream_options": {"include_usage": True}}
    *pieces, last, counted = events(post(app, "/v1/completions", body))
    assert "".join(e["choices"][0]["text"] for e in pieces) == wanted.text and len(pieces) > 1
    assert last["choices"][0]["finish_reason"] == "stop" and last["ztok"] == answer["ztok"]
    assert counted["choices"] == [] and counted["usage"] == answer["usage"]

    body = {"model": MODEL, "prompt": ["One, two,", prompt], "max_tokens": 3}
    answer = post(app, "/v1/completions", body).json()
    assert [c["index"] for c in answer["choices"]] == [0, 1]
    short = [llm.complete(p, max_tokens=3).text for p in body["prompt"]]
    assert [c["text"] for c in answer["choices"]] == short
    assert answer["choices"][0]["finish_reason"] == "length"

    body = {"model": MODEL, "prompt": prompt, "max_tokens": 12, "min_tokens": 12}
    (choice,) = post(app, "/v1/completions", body).json()["choices"]
    assert choice["text"] == llm.complete(prompt, max_tokens=12, min_new_tokens=12).text
    assert choice["text"] != wanted.text and choice["finish_reason"] == "length"


def test_chats_are_those_of_the_llm(app: FastAPI, llm: ZTokenLLM, prompt: str) -> None:
    messages = [
        {"role": "system", "content": "Answer in a few words."},
        {"role": "user", "content": [{"type": "text", "text": prompt}]},
    ]
    wanted = llm.chat([ChatMessage(role=m, content=c) for m, c in (
        ("system", "Answer in a few words."), ("user", prompt))])  # fmt: skip
    body = {"model": MODEL, "messages": messages}
    answer = post(app, "/v1/chat/completions", body).json()
    message = answer["choices"][0]["message"]
    assert message == {"role": "assistant", "content": wanted.message.content}
    assert answer["object"] == "chat.completion" and answer["usage"]["prompt_tokens"] > 50

    streamed = events(post(app, "/v1/chat/completions", {**body, "stream": True}))
    deltas = [event["choices"][0]["delta"] for event in streamed]
    assert deltas[0]["role"] == "assistant"
    assert "".join(d["content"] for d in deltas) == wanted.message.content
    assert streamed[-1]["choices"][0]["finish_reason"] == "stop"
    assert {event["id"] for event in streamed} == {streamed[0]["id"]}


def test_requests_that_come_together_are_read_together(
    app: FastAPI, llm: ZTokenLLM, prompt: str
) -> None:
    asked = [prompt.replace(QUESTION, q) for q in (
        QUESTION, "When was the lighthouse built?", "When does the bakery open?", "Who sells buns?"
    )]  # fmt: skip
    wanted = [llm.complete(p).text for p in asked]
    before = llm.reader.batcher.stats

    async def all_at_once(client: httpx.AsyncClient) -> list[str]:
        bodies = [{"model": MODEL, "prompt": p} for p in asked]
        got = await asyncio.gather(*(client.post("/v1/completions", json=b) for b in bodies))
        return [response.json()["choices"][0]["text"] for response in got]

    assert ask(app, all_at_once) == wanted
    after = llm.reader.batcher.stats
    assert after.rows - before.rows > 1.3 * (after.passes - before.passes)


def test_models(app: FastAPI, llm: ZTokenLLM) -> None:
    listed = ask(app, lambda c: c.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == [MODEL]
    model = ask(app, lambda c: c.get(f"/v1/models/{MODEL}")).json()
    assert model["context_window"] == llm.reader.max_positions
    assert model["fingerprint"] == llm.reader.fingerprint
    missing = ask(app, lambda c: c.get("/v1/models/gpt-4"))
    assert refused(missing, 404, MODEL)["code"] == "model_not_found"


def test_an_index_is_asked(index: ZTokenIndex, llm: ZTokenLLM) -> None:
    app = create_app({MODEL: llm}, {"corpus": index})
    response = post(app, "/v1/indexes/corpus/rag", {"question": QUESTION, "similarity_top_k": 2})
    answer = response.json()
    wanted = index.query(QUESTION, similarity_top_k=2)
    assert answer["answer"] == str(wanted) and "Tomas Berg" in answer["answer"]
    assert [n["node_id"] for n in answer["source_nodes"]] == [
        item.node.node_id for item in wanted.source_nodes
    ]
    assert answer["source_nodes"][0]["text"] == PASSAGE
    assert answer["source_nodes"][0]["document_id"] == "lighthouse"
    (citation,) = find_citations(wanted, index.llm())
    assert answer["citations"][0] == vars(citation)
    assert 0 < answer["usage"]["completion_tokens"] < answer["usage"]["prompt_tokens"]

    assert ask(app, lambda c: c.get("/v1/indexes")).json()["data"][0]["id"] == "corpus"
    refused(post(app, "/v1/indexes/other/rag", {"question": "Who?"}), 404, "corpus")
    refused(post(app, "/v1/indexes/corpus/rag", {"question": " "}), 400, "no words")
    refused(post(app, "/v1/indexes/corpus/rag", {"question": "Who?", "k": 3}), 400, "k")
    long = post(app, "/v1/indexes/corpus/rag", {"question": "who " * 9000})
    assert refused(long, 400, "no room")["code"] == "context_length_exceeded"
    # Its handles are read by the model of its name alone.
    (z,) = index.store.get_or_compress(index.compressor, [PASSAGE], 4)
    handle = encode_handles(z, index.store.secret)
    body = {"model": "corpus", "prompt": f"{handle}\n\nQuestion: {QUESTION}\nAnswer:"}
    assert "Berg" in post(app, "/v1/completions", body).json()["choices"][0]["text"]
    error = refused(post(app, "/v1/completions", {**body, "model": MODEL}), 400, "secret")
    assert error["code"] == "invalid_handle"
    # What looks like a handle in a question is text.
    looks = {"question": "Who wrote ⟦ztok:9:abc⟧?"}
    assert post(app, "/v1/indexes/corpus/rag", looks).status_code == 200


@pytest.mark.parametrize("question", [QUESTION, "Who is the owner of the bakery?"])
def test_an_index_is_asked_for_a_stream(index: ZTokenIndex, question: str) -> None:
    app = create_app({}, {"corpus": index})
    path, body = "/v1/indexes/corpus/rag", {"question": question, "similarity_top_k": 2}
    whole = post(app, path, body).json()
    response = post(app, path, {**body, "stream": True})
    assert response.headers["Content-Type"].startswith("text/event-stream")
    sources, *pieces, ending = events(response)
    assert sources["source_nodes"] == whole["source_nodes"] != []
    assert "".join(e["delta"]["answer"] for e in pieces) == whole["answer"] and len(pieces) > 1
    assert ending["citations"] == whole["citations"] != []
    assert ending["usage"] == whole["usage"]
    for event in (sources, *pieces, ending):
        assert (event["object"], event["model"]) == ("rag.answer.chunk", "corpus")
        assert event["id"] == sources["id"]


def test_streams_of_an_index_that_are_refused(
    index: ZTokenIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(answer_tokens=32)
    app = create_app({}, {"corpus": index}, limits=limits)
    path, body = "/v1/indexes/corpus/rag", {"question": QUESTION, "stream": True}
    refused(post(app, "/v1/indexes/other/rag", body), 404, "corpus")
    refused(post(app, path, {**body, "question": " "}), 400, "no words")
    refused(post(app, path, {**body, "question": "who " * 9000}), 400, "no room")
    refused(post(app, path, {**body, "max_tokens": 33}), 400, "at most 32 tokens")
    refused(post(app, path, {**body, "stream": "perhaps"}), 400, "stream")

    def fail(*arguments: Any, **more: Any) -> None:
        raise RuntimeError("the path /secret/of/the/server")

    monkeypatch.setattr(type(index.compressor.reader), "begin", fail)
    response = post(app, path, body)
    refused(response, 500, "log")
    assert "secret" not in response.text


def test_a_stream_of_an_index_in_which_nothing_was_found(
    index: ZTokenIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ztok_rag.index.retriever.Retriever._aretrieve", nothing)
    app = create_app({}, {"corpus": index})
    whole = post(app, "/v1/indexes/corpus/rag", {"question": QUESTION}).json()
    streamed = post(app, "/v1/indexes/corpus/rag", {"question": QUESTION, "stream": True})
    sources, piece, ending = events(streamed)
    assert sources["source_nodes"] == whole["source_nodes"] == []
    assert piece["delta"]["answer"] == whole["answer"] == "Empty Response"
    assert ending["citations"] == whole["citations"] == []


async def nothing(*arguments: Any, **more: Any) -> list[Any]:
    return []


def test_who_may_ask(app: FastAPI) -> None:
    for headers in ({}, {"Authorization": TOKEN}, {"Authorization": f"Bearer {TOKEN}x"}):
        for path in ("/v1/models", "/models", "/openapi.json", "/nothing"):
            response = ask(app, lambda c, p=path: c.get(p), headers=headers)
            assert refused(response, 401, "token")["code"] == "invalid_api_key"
            assert response.headers["WWW-Authenticate"] == "Bearer"
        refused(post(app, "/v1/completions", {}, headers=headers), 401, "token")
    lower = ask(app, lambda c: c.get("/v1/models"), headers={"Authorization": f"bearer {TOKEN}"})
    assert lower.status_code == 200
    assert ask(app, lambda c: c.get("/health"), headers={}).json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "body"),
        (b"", "body"),
        (b"[" * 9000, "body"),
        (b"[]", "body"),
        (b'{"model": "ztok-rag"}', "prompt"),
        ({"model": MODEL, "prompt": 7}, "prompt"),
        ({"model": MODEL, "prompt": ""}, "empty"),
        ({"model": MODEL, "prompt": []}, "1 to 3 prompts"),
        ({"model": MODEL, "prompt": ["a"] * 4}, "1 to 3 prompts"),
        ({"model": MODEL, "prompt": ["a", "b"], "stream": True}, "one prompt"),
        ({"model": MODEL, "prompt": "word " * 500}, "501 tokens, and this server reads 400"),
        ({"model": MODEL, "prompt": "Hi", "max_tokens": 33}, "at most 32 tokens"),
        ({"model": MODEL, "prompt": "Hi", "max_tokens": 0}, "max_tokens"),
        ({"model": MODEL, "prompt": "Hi", "max_tokens": 2, "min_tokens": 3}, "2 tokens"),
        ({"model": MODEL, "prompt": "Hi", "n": 2}, "n"),
        ({"model": MODEL, "prompt": "Hi", "best_off": 1}, "best_off"),
        ({"model": MODEL, "prompt": "Hi", "logit_bias": {"7": 100}}, "logit_bias"),
        ({"model": MODEL, "prompt": "see ⟦ztok:9:abc"}, "incomplete or altered handle"),
    ],
)
def test_completions_that_are_refused(app: FastAPI, body: Any, said: str) -> None:
    refused(post(app, "/v1/completions", body), 400, said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role 'tool'"),
        ({"messages": [{"role": "user"}]}, "no content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "part"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_chats_that_are_refused(app: FastAPI, change: dict[str, Any], said: str) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], **change}
    for stream in (False, True):
        refused(post(app, "/v1/chat/completions", {**body, "stream": stream}), 400, said)


def test_other_things_that_are_refused(app: FastAPI, llm: ZTokenLLM) -> None:
    body = {"model": "gpt-4", "prompt": "Hi"}
    assert refused(post(app, "/v1/completions", body), 404, MODEL)["param"] == "model"
    refused(post(app, "/v1/embeddings", {}), 404)
    refused(ask(app, lambda c: c.get("/v1/completions")), 405)
    large = {"model": MODEL, "prompt": "a" * 20_000}
    assert refused(post(app, "/v1/completions", large), 413)["code"] == "body_too_large"

    async def in_parts(client: httpx.AsyncClient) -> httpx.Response:
        async def parts() -> Any:
            for _ in range(30):
                yield b" " * 1000

        return await client.post("/v1/completions", content=parts())

    refused(ask(app, in_parts), 413, "20000 bytes")
    page = create_app({MODEL: llm}, hosts=["localhost"])
    refused(ask(page, lambda c: c.get("/v1/models")), 400, "Host")
    local = ask(page, lambda c: c.get("/v1/models"), base_url="http://localhost:8000")
    assert local.status_code == 200


def test_more_requests_than_are_taken(llm: ZTokenLLM, prompt: str) -> None:
    app = create_app({MODEL: llm}, limits=Limits(requests=2))

    async def five(client: httpx.AsyncClient) -> list[httpx.Response]:
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 2}
        return await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(5)))

    got = ask(app, five)
    assert sorted(r.status_code for r in got) == [200, 200, 429, 429, 429]
    busy = next(r for r in got if r.status_code == 429)
    assert refused(busy, 429)["type"] == "rate_limit_error"
    assert 1 <= int(busy.headers["Retry-After"]) <= 60
    assert post(app, "/v1/completions", {"model": MODEL, "prompt": "Hi"}).status_code == 200


def test_what_fails_inside_is_not_told(
    app: FastAPI, llm: ZTokenLLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any, **more: Any) -> None:
        raise RuntimeError("the path /secret/of/the/server")

    monkeypatch.setattr(type(llm.reader), "begin", fail)
    body = {"model": MODEL, "prompt": "Hi"}
    for stream in (False, True):
        response = post(app, "/v1/completions", {**body, "stream": stream})
        assert refused(response, 500, "log")["type"] == "server_error"
        assert "secret" not in response.text
    assert "/secret/of/the/server" in caplog.text


def test_a_failure_within_a_stream_is_an_event(
    app: FastAPI, llm: ZTokenLLM, monkeypatch: pytest.MonkeyPatch, prompt: str
) -> None:
    real = type(llm.reader).advance
    passes = 0

    def fail_later(reader: Any, decoder: Any) -> None:
        nonlocal passes
        passes += 1
        if passes > 2:
            raise RuntimeError("the path /secret/of/the/server")
        real(reader, decoder)

    monkeypatch.setattr(type(llm.reader), "advance", fail_later)
    body = {"model": MODEL, "prompt": "One, two, three, four,", "stream": True, "max_tokens": 20}
    response = post(app, "/v1/completions", body)
    last = json.loads(response.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert response.status_code == 200
    assert last["error"]["type"] == "server_error" and "secret" not in response.text


def test_two_of_one_name(index: ZTokenIndex, llm: ZTokenLLM) -> None:
    with pytest.raises(ZtokError, match="both named"):
        create_app({"corpus": llm}, {"corpus": index})
