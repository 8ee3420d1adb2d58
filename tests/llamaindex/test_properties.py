"""Text in, text out: whatever is retrieved, whatever is asked, at any rate and budget."""

from __future__ import annotations

import asyncio
import copy
import warnings
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode

from ztok_rag import ZCompressor, ZStore, ZTokenLLM, ZTokenPostprocessor
from ztok_rag.storage.handle import count_tokens

CHARACTERS = st.characters(exclude_categories=())  # halves of surrogate pairs, too
WORDS = st.sampled_from(
    [
        *("The ferry leaves at nine.", "Yes.", "42", "a", "\n\n", "\t", "e\u0301", "\u200b"),
        *("渡船每天早上七点开往奥德林岛。", "ตั๋วราคาสี่เหรียญ", "क्या है।", "🧑‍🍳🥧", "\ud835", "\x00"),
        *("⟦ztok:1:AAAA⟧", "⟦ztok:", "<|im_end|>", "x" * 300, "…", "﷽", "\r\n", " " * 40),
    ]
)
TEXTS = st.one_of(
    st.text(CHARACTERS, max_size=30),
    st.lists(WORDS, min_size=1, max_size=8).map(" ".join),
    st.lists(WORDS, min_size=1, max_size=4).map("".join),
)
METADATA = st.dictionaries(
    st.text(CHARACTERS, min_size=1, max_size=8),
    st.one_of(TEXTS, st.integers(), st.floats(), st.none(), st.dates(), st.booleans()),
    max_size=2,
)
NODES = st.lists(
    st.tuples(TEXTS, METADATA, st.one_of(st.none(), st.floats(-2, 2))), min_size=0, max_size=4
)


@pytest.fixture(scope="module")
def shared(compressor: ZCompressor, tmp_path_factory: pytest.TempPathFactory) -> Any:
    store = ZStore(tmp_path_factory.mktemp("properties") / "store")
    return compressor, store


@given(
    nodes=NODES,
    question=st.one_of(st.none(), TEXTS),
    rate=st.sampled_from([1.0, 1.5, 2.0, 4.0, 7.3, 16.0, 31.0, 64.0, 1000.0]),
    budget=st.one_of(st.none(), st.integers(1, 12), st.integers(1, 400)),
    is_query_aware=st.booleans(),
    context_format=st.sampled_from(["z-tokens", "z-tokens", "text", "decompressed"]),
    is_awaited=st.booleans(),
)
@example([("Yes.", {}, None)], "Is it?", 16.0, 1, True, "z-tokens", True)
@example([("a", {}, 0.5), ("b", {}, 0.5)], "a", 64.0, 1, False, "text", False)
@example([("\ud835", {"\ud835": "\ud835"}, 1.0)], "\ud835", 4.0, None, True, "z-tokens", True)
@example([("x" * 5000, {"when": date(2024, 1, 2)}, 1.0)], "x", 4.0, 9, True, "z-tokens", False)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_any_nodes_come_out_and_can_be_read(
    shared: tuple[ZCompressor, ZStore],
    nodes: list[tuple[str, dict[str, Any], float | None]],
    question: str | None,
    rate: float,
    budget: int | None,
    is_query_aware: bool,
    context_format: Any,
    is_awaited: bool,
) -> None:
    compressor, store = shared
    retrieved = [
        NodeWithScore(node=TextNode(text=text, metadata=metadata), score=score)
        for text, metadata, score in nodes
    ]
    before = copy.deepcopy(retrieved)
    bundle = None if question is None else QueryBundle(question)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        step = ZTokenPostprocessor(
            rate=rate,
            token_budget=budget,
            query_aware=is_query_aware,
            context_format=context_format,
            compressor=compressor,
            store=store,
        )
        if is_awaited:
            awaited = step.apostprocess_nodes(retrieved, query_bundle=bundle)
            found = asyncio.run(asyncio.wait_for(awaited, 120))
        else:
            found = step.postprocess_nodes(retrieved, query_bundle=bundle)
        assert [item.dict() for item in retrieved] == [item.dict() for item in before]
        ids = [item.node.node_id for item in retrieved]
        assert [i.node.node_id for i in found] == (
            ids if budget is None else [i for i in ids if i in {f.node.node_id for f in found}]
        )
        by_id = {item.node.node_id: item for item in before}
        for item in found:
            own = by_id[item.node.node_id]
            assert item.score == own.score
            assert item.node.get_content() == own.node.get_content()
            assert repr(item.node.metadata) == repr(own.node.metadata)
        shown = [item.node.get_content(MetadataMode.LLM) for item in found]
        if budget is not None and context_format == "z-tokens":
            worded = [s for s, item in zip(shown, found, strict=True) if item.node.text.strip()]
            spent = sum(count_tokens(s, lambda t: [0] * compressor.count_tokens(t)) for s in worded)
            assert spent <= budget
        if context_format == "z-tokens":
            llm = ZTokenLLM(reader=compressor.reader, store=store, max_new_tokens=2)
            prompt = "\n\n".join([*shown, "Question: " + (question or "What is it?"), "Answer:"])
            if "⟦ztok:" not in (question or ""):
                assert isinstance(llm.complete(prompt).text, str)


def test_a_store_that_is_shared_stays_small(shared: tuple[ZCompressor, ZStore]) -> None:
    assert Path(shared[1].path, "cache.db").is_file()
