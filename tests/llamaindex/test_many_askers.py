"""Many async askers of one process: no answer is lost or another's, and the event loop goes on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from llama_index.core import Document
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from tests.training.tiny_base import passages, tiny_model
from ztok_rag import (
    ZCompressor,
    ZReader,
    ZStore,
    ZTokenIndex,
    ZTokenLLM,
    ZTokenPostprocessor,
    ZTokenTransform,
)
from ztok_rag.codec.generation import GreedyDecoder
from ztok_rag.codec.model import ZModel
from ztok_rag.storage.handle import encode_handles

pytestmark = pytest.mark.usefixtures("tokenizer_left_as_it_was")

ASKED = 6


@pytest.fixture(scope="module")
def index(
    compressor: ZCompressor, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ZTokenIndex]:
    documents = [Document(text=text, id_=str(n)) for n, (text, _, _) in enumerate(passages(ASKED))]
    folder = tmp_path_factory.mktemp("asked") / "index"
    with ZTokenIndex.build(documents, folder, compressor=compressor) as built:
        yield built


@asynccontextmanager
async def lags() -> AsyncIterator[list[float]]:
    """Seconds by which the event loop was late, every few milliseconds."""
    found: list[float] = []

    async def tick() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.01)
            found.append(time.perf_counter() - before - 0.01)

    ticking = asyncio.create_task(tick())
    yield found
    ticking.cancel()


def test_answers_of_an_index_are_not_crossed(index: ZTokenIndex) -> None:
    questions = [question for _, question, _ in passages(ASKED)]
    engine = index.as_query_engine(llm=index.llm(max_new_tokens=8), similarity_top_k=1)
    wanted = [str(engine.query(question)) for question in questions]
    assert len(set(wanted)) > ASKED // 2

    async def ask_all() -> tuple[list[str], float, float]:
        started = time.perf_counter()
        async with lags() as late:
            got = await asyncio.gather(*map(engine.aquery, questions))
        return [str(response) for response in got], max(late), time.perf_counter() - started

    got, late, took = asyncio.run(ask_all())
    assert got == wanted
    assert late < max(0.5, took / 4)


def test_a_thousand_completions_of_one_llm(tmp_path_factory: pytest.TempPathFactory) -> None:
    compressor = ZCompressor(tiny_model())
    with ZStore(tmp_path_factory.mktemp("thousand") / "store") as store:
        llm = ZTokenLLM(reader=compressor.reader, store=store, max_new_tokens=4)
        zs = compressor.compress([text for text, _, _ in passages(40)], 4.0)
        prompts = [
            f"{encode_handles(z, store.secret)}\n\nQuestion: {question}\nAnswer:"
            for z, (_, question, _) in zip(zs, passages(40), strict=True)
        ]
        wanted = [llm.complete(prompt).text for prompt in prompts]

        async def ask_all() -> list[str]:
            got = await asyncio.gather(*(llm.acomplete(prompts[n % 40]) for n in range(1000)))
            return [response.text for response in got]

        assert asyncio.run(ask_all()) == [wanted[n % 40] for n in range(1000)]


def test_no_async_path_blocks_the_event_loop(index: ZTokenIndex) -> None:
    (text, question, _), *_ = passages(1)
    (z,) = index.store.get_or_compress(index.compressor, [text], 4)
    prompt = f"{encode_handles(z, index.store.secret)}\n\nQuestion: {question}\nAnswer:"
    messages = [ChatMessage(role="user", content=prompt)]
    llm = index.llm(max_new_tokens=12)
    postprocessor: ZTokenPostprocessor = index.postprocessor()
    new = [f"{number}. {body}" for number, (body, _, _) in enumerate(passages(5))]

    async def stream() -> None:
        async for _ in await llm.astream_complete(prompt):
            pass

    async def stream_chat() -> None:
        async for _ in await llm.astream_chat(messages):
            pass

    async def postprocess() -> None:
        nodes = [NodeWithScore(node=TextNode(text=body), score=1.0) for body in new]
        await postprocessor.apostprocess_nodes(nodes, QueryBundle(question))

    async def transform() -> None:
        await index_transform.acall([TextNode(text=body + " Once more.") for body in new])

    index_transform = ZTokenTransform(compressor=index.compressor, store=index.store)

    async def measure() -> dict[str, tuple[float, float]]:
        found = {}
        for name, work in {
            "acomplete": lambda: llm.acomplete(prompt),
            "achat": lambda: llm.achat(messages),
            "astream_complete": stream,
            "astream_chat": stream_chat,
            "postprocess": postprocess,
            "transform": transform,
        }.items():
            started = time.perf_counter()
            async with lags() as late:
                await asyncio.sleep(0.02)
                await work()
                await asyncio.sleep(0.02)
            found[name] = time.perf_counter() - started, max(late)
        return found

    found = asyncio.run(measure())
    # Each takes longer than the loop is ever late.
    assert all(late < max(0.1, took / 2) for took, late in found.values()), found


class Gated(ZReader):
    """A reader that makes no pass before its gate is open."""

    def __init__(self, model: ZModel) -> None:
        super().__init__(model)
        self.gate = threading.Event()

    def advance(self, decoder: GreedyDecoder) -> None:
        assert self.gate.wait(60)
        super().advance(decoder)


def test_cancelled_calls_give_their_places_free(store: ZStore) -> None:
    reader = Gated(tiny_model())
    llm = ZTokenLLM(reader=reader, store=store, max_new_tokens=40)
    batcher = reader.batcher

    async def until(holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < end
            await asyncio.sleep(0.005)

    async def ask() -> str:
        streamed = await llm.astream_complete("The old mill of")
        chatted = await llm.astream_chat([ChatMessage(role="user", content="The old mill of")])
        tasks = [
            asyncio.create_task(llm.acomplete("The old mill of")),
            asyncio.ensure_future(anext(streamed)),
            asyncio.ensure_future(anext(chatted)),
        ]
        await until(lambda: batcher.stats.writing + batcher.stats.waiting == 3)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        reader.gate.set()
        await until(lambda: batcher.stats.writing + batcher.stats.waiting == 0)
        return (await llm.acomplete("In the winter the river")).text

    text = asyncio.run(ask())
    assert text == llm.complete("In the winter the river").text
    assert (batcher.stats.cancelled, batcher.stats.answers) == (3, 1)
