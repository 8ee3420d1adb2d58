"""Components in other processes, in caches and in event loops: nothing is lost on the way."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import select
import shutil
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, Settings
from llama_index.core.ingestion import IngestionCache, IngestionPipeline
from llama_index.core.schema import (
    IndexNode,
    MetadataMode,
    NodeWithScore,
    QueryBundle,
    TextNode,
    TransformComponent,
)

from tests.conftest import BAKERY, PASSAGE
from tests.training.tiny_base import tiny_model
from ztok_rag import (
    ZCompressor,
    ZStore,
    ZTokenLLM,
    ZTokenPostprocessor,
    ZTokenTransform,
    ZtokError,
    default_embedding,
)
from ztok_rag.llamaindex.node import ZTokenNode
from ztok_rag.storage.handle import has_handles

QUESTION = "Who built the lighthouse?"


def nodes() -> list[TextNode]:
    return [TextNode(text=PASSAGE), TextNode(text=BAKERY)]


def scored() -> list[NodeWithScore]:
    return [NodeWithScore(node=node, score=1.0) for node in nodes()]


def shown(item: NodeWithScore) -> str:
    return item.node.get_content(MetadataMode.LLM)


# -- copies


def ingest(transform: ZTokenTransform) -> tuple[str, int]:
    """Run in a worker process."""
    transform(nodes())
    store = transform._store
    assert store is not None
    return str(store.path), store.stats.compressed


def test_a_transform_in_a_worker_fills_the_store_it_was_given(
    compressor: ZCompressor, store: ZStore
) -> None:
    transform = ZTokenTransform(compressor=compressor, store=store)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        path, compressed = pool.submit(ingest, transform).result(timeout=300)
    assert path == str(store.path) and compressed == 2
    postprocessor = ZTokenPostprocessor(compressor=compressor, store=store)
    postprocessor.postprocess_nodes(scored(), QueryBundle(QUESTION))
    assert postprocessor.stats.compressed == 0


@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_have_the_same_model_and_store(
    compressor: ZCompressor, store: ZStore, again: Any, tokenizer_left_as_it_was: None
) -> None:
    transform = ZTokenTransform(query_aware=False, compressor=compressor, store=store)
    own = again(transform)
    assert own.query_aware is False
    assert own._store.path == store.path and own._store.secret == store.secret
    assert own._compressor.model is compressor.model

    step = ZTokenPostprocessor(rate=3.0, token_budget=50, compressor=compressor, store=store)
    copied = again(step)
    assert (copied.rate, copied.token_budget) == (3.0, 50)
    first = step.postprocess_nodes(scored(), QueryBundle(QUESTION))
    second = copied.postprocess_nodes(scored(), QueryBundle(QUESTION))
    assert list(map(shown, first)) == list(map(shown, second))

    llm = ZTokenLLM(reader=compressor.reader, store=store, max_new_tokens=5, system_prompt="Hi.")
    twin = again(llm)
    assert (twin.max_new_tokens, twin.system_prompt) == (5, "Hi.")
    prompt = f"{shown(first[0])}\n\nQuestion: {QUESTION}\nAnswer:"
    assert twin.complete(prompt).text == llm.complete(prompt).text


def test_the_embedding_model_of_settings_goes_along(
    compressor: ZCompressor, store: ZStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = default_embedding()
    monkeypatch.setattr(Settings, "_embed_model", model)
    transform = ZTokenTransform(compressor=compressor, store=store)
    data = pickle.dumps(transform)
    monkeypatch.setattr(Settings, "_embed_model", None)
    assert pickle.loads(data)._embed_model is not None


def test_a_model_that_is_of_no_checkpoint_is_not_sent() -> None:
    with pytest.raises(ZtokError, match=r"save_pretrained"):
        pickle.dumps(ZCompressor(tiny_model()))


class Tagged(TextNode):
    tag: str = ""


@pytest.mark.parametrize(
    "node",
    [
        IndexNode(text=PASSAGE, index_id="inner", metadata={"k": 1}),
        Tagged(text=PASSAGE, tag="mine", metadata_template="<{key}={value}>", metadata={"k": 1}),
        TextNode(text=PASSAGE, excluded_llm_metadata_keys=["k"], metadata={"k": 1}),
    ],
)
def test_nodes_keep_their_kind_and_fields(
    node: TextNode, compressor: ZCompressor, store: ZStore, tokenizer_left_as_it_was: None
) -> None:
    step = ZTokenPostprocessor(compressor=compressor, store=store)
    (item,) = step.postprocess_nodes([NodeWithScore(node=node, score=1.0)], QueryBundle(QUESTION))
    assert isinstance(item.node, type(node)) and isinstance(item.node, ZTokenNode)
    for name in type(node).model_fields:
        assert getattr(item.node, name) == getattr(node, name), name
    assert has_handles(shown(item)) and "Lindqvist" not in shown(item)
    again = pickle.loads(pickle.dumps(item.node))
    assert type(again) is type(item.node) and again.dict() == item.node.dict()


# -- servers


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_process_forked_from_a_warm_one_answers(
    compressor: ZCompressor, store: ZStore, tokenizer_left_as_it_was: None
) -> None:
    step = ZTokenPostprocessor(compressor=compressor, store=store)
    llm = ZTokenLLM(reader=compressor.reader, store=store, max_new_tokens=6)

    def ask(text: str) -> str:
        node = NodeWithScore(node=TextNode(text=text), score=1.0)
        (item,) = step.postprocess_nodes([node], QueryBundle(QUESTION))
        return llm.complete(f"{shown(item)}\n\nQuestion: {QUESTION}\nAnswer:").text

    expected = ask(PASSAGE)
    busy, done = threading.Event(), threading.Event()

    def hold() -> None:  # as a thread that answers does while the server forks
        with compressor.model.base.lock:
            busy.set()
            done.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    busy.wait(60)
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        os.write(writes, ask(PASSAGE).encode())
        os._exit(0)
    done.set()
    holder.join()
    os.close(writes)
    ready, _, _ = select.select([reads], [], [], 60)
    if not ready:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert ready and os.read(reads, 1000).decode() == expected
    os.close(reads)


def test_threads_with_event_loops_of_their_own_get_their_own_answers(
    compressor: ZCompressor, store: ZStore, tokenizer_left_as_it_was: None
) -> None:
    step = ZTokenPostprocessor(compressor=compressor, store=store)
    llm = ZTokenLLM(reader=compressor.reader, store=store, max_new_tokens=6)
    owners = ["Ada Merrow", "Piet Larsen", "Ilse Varga", "Bruno Keld"]

    async def ask(owner: str) -> str:
        node = NodeWithScore(node=TextNode(text=f"The old mill is run by {owner}."), score=1.0)
        (item,) = await step.apostprocess_nodes([node], QueryBundle("Who runs the mill?"))
        prompt = f"{shown(item)}\n\nQuestion: Who runs the mill?\nAnswer:"
        return (await llm.acomplete(prompt)).text

    expected = {owner: asyncio.run(ask(owner)) for owner in owners}
    assert len(set(expected.values())) > 1
    found: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda o=owner: found.update({o: asyncio.run(ask(o))}))
        for owner in owners
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert found == expected


def test_an_iterator_that_ends_too_soon_is_an_error_to_whoever_awaits(
    compressor: ZCompressor, store: ZStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise StopIteration

    step = ZTokenPostprocessor(compressor=compressor, store=store)
    monkeypatch.setattr(ZTokenPostprocessor, "_postprocess_nodes", stop)
    awaited = step.apostprocess_nodes(scored(), QueryBundle(QUESTION))
    with pytest.raises(RuntimeError, match="ended too soon"):
        asyncio.run(asyncio.wait_for(awaited, 30))


# -- ingestion


def test_a_cached_pipeline_compresses_again_for_another_store(
    compressor: ZCompressor, tmp_path: Path
) -> None:
    cache = IngestionCache()

    def run(store: ZStore) -> int:
        transform = ZTokenTransform(compressor=compressor, store=store, query_aware=False)
        IngestionPipeline(transformations=[transform], cache=cache).run(
            documents=[Document(text=PASSAGE, id_="a")]
        )
        return store.stats.compressed

    first = ZStore(tmp_path / "one")
    assert run(first) == 1 and run(first) == 1  # the second time, the cache answers
    assert run(ZStore(tmp_path / "two")) == 1
    first.close()
    shutil.rmtree(tmp_path / "one")
    assert run(ZStore(tmp_path / "one")) == 1


def test_a_transform_comes_back_from_its_settings(compressor: ZCompressor, store: ZStore) -> None:
    transform = ZTokenTransform(compressor=compressor, store=store)
    again = ZTokenTransform.from_json(transform.to_json())
    assert again._store is not None and again._store.path == store.path
    other = {**transform.to_dict()}
    other["made_with"] = {**other["made_with"], "checkpoint": "0" * 16}
    with pytest.raises(ZtokError, match=r"made with the checkpoint 0+, not"):
        ZTokenTransform.from_dict(other)


def test_an_ingestion_does_not_block_the_event_loop(compressor: ZCompressor, store: ZStore) -> None:
    threads = []

    class Noting(TransformComponent):
        def __call__(self, nodes: Any, **kwargs: Any) -> Any:
            return nodes

    class Watched(ZTokenTransform):
        def __call__(self, nodes: Any, **kwargs: Any) -> Any:
            threads.append(threading.current_thread())
            return super().__call__(nodes, **kwargs)

    transform = Watched(compressor=compressor, store=store)
    pipeline = IngestionPipeline(transformations=[Noting(), transform], disable_cache=True)
    asyncio.run(pipeline.arun(documents=[Document(text=PASSAGE)]))
    assert threads and threading.main_thread() not in threads
    assert store.stats.compressed == 1


def test_a_generator_of_nodes_is_compressed_whole(compressor: ZCompressor, store: ZStore) -> None:
    transform = ZTokenTransform(compressor=compressor, store=store)
    assert len(transform(iter(nodes()))) == 2  # type: ignore[arg-type]
    assert store.stats.compressed == 2
    assert store.resolve(compressor, (n.text for n in nodes()))[1] == 0  # type: ignore[arg-type]
    with pytest.raises(ZtokError, match="put it in a list"):
        transform(nodes()[0])  # type: ignore[arg-type]
    with pytest.raises(ZtokError, match="put it in a list"):
        store.delete("a text")
