"""Where the answers of engines stand in their source nodes."""

from __future__ import annotations

from pathlib import Path

import pytest
from llama_index.core import Document, MockEmbedding, Response, VectorStoreIndex
from llama_index.core.query_engine import CitationQueryEngine
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode

from tests.conftest import BAKERY, PASSAGE
from ztok_rag import (
    HandleError,
    ZCompressor,
    ZStore,
    ZTokenLLM,
    ZTokenPostprocessor,
    find_citations,
)

pytestmark = pytest.mark.usefixtures("tokenizer_left_as_it_was")


@pytest.fixture
def llm(compressor: ZCompressor, store: ZStore) -> ZTokenLLM:
    return ZTokenLLM(reader=compressor.reader, store=store, max_new_tokens=12)


@pytest.fixture
def step(compressor: ZCompressor, store: ZStore) -> ZTokenPostprocessor:
    return ZTokenPostprocessor(compressor=compressor, store=store)


@pytest.fixture
def index() -> VectorStoreIndex:
    documents = [Document(text=BAKERY, id_="bakery"), Document(text=PASSAGE, id_="lighthouse")]
    return VectorStoreIndex.from_documents(documents, embed_model=MockEmbedding(embed_dim=4))


@pytest.mark.parametrize("streaming", [False, True])
def test_an_answer_is_found_in_its_source_node(
    index: VectorStoreIndex, llm: ZTokenLLM, step: ZTokenPostprocessor, streaming: bool
) -> None:
    engine = index.as_query_engine(
        llm=llm, node_postprocessors=[step], similarity_top_k=2, streaming=streaming
    )
    response = engine.query("Who was the last keeper?")
    answer = "".join(response.response_gen) if streaming else str(response)
    (citation,) = find_citations(response, llm, answer=answer if streaming else None)
    node = response.source_nodes[citation.source].node
    assert node.ref_doc_id == "lighthouse" and node.node_id == citation.node_id
    assert citation.text == answer.strip().rstrip(".") == "Tomas Berg"
    assert node.get_content(MetadataMode.NONE)[citation.start : citation.end] == citation.text


def test_the_nodes_of_a_citation_engine_are_found_too(
    index: VectorStoreIndex, llm: ZTokenLLM, step: ZTokenPostprocessor
) -> None:
    engine = CitationQueryEngine.from_args(
        index,
        llm=llm,
        node_postprocessors=[step],
        similarity_top_k=2,
        metadata_mode=MetadataMode.LLM,
    )
    response = engine.query("Who was the last keeper?")
    answer = str(response).strip()
    for citation in find_citations(response, llm):
        assert PASSAGE[citation.start : citation.end] == citation.text == answer.rstrip(".")


def test_text_nodes_and_answers_that_stand_nowhere(llm: ZTokenLLM) -> None:
    nodes = [NodeWithScore(node=TextNode(text=text), score=1.0) for text in (BAKERY, PASSAGE)]
    found = find_citations(Response(response="Elin Strand.", source_nodes=nodes), llm)
    assert [(c.source, c.text) for c in found] == [(0, "Elin Strand")]
    assert find_citations(Response(response="Nobody knows", source_nodes=nodes), llm) == []
    assert find_citations(Response(response=None, source_nodes=[]), llm) == []


def test_nodes_of_another_store_are_refused(
    llm: ZTokenLLM, compressor: ZCompressor, tmp_path: Path
) -> None:
    other = ZTokenPostprocessor(compressor=compressor, store=ZStore(tmp_path / "other"))
    nodes = other.postprocess_nodes([NodeWithScore(node=TextNode(text=PASSAGE), score=1.0)])
    with pytest.raises(HandleError, match="not made with this store"):
        find_citations(Response(response="Tomas Berg", source_nodes=nodes), llm)
