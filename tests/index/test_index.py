"""`ZTokenIndex` and its commands, on the shipped checkpoint: what it keeps, and what it forgets."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import faiss
import llama_index.core
import pytest
from llama_index.core import Document, PromptTemplate, Settings, get_response_synthesizer
from llama_index.core.base.response.schema import StreamingResponse
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor import LongContextReorder
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import (
    MetadataFilter,
    MetadataFilters,
    SimpleVectorStore,
)
from llama_index.vector_stores.faiss import FaissMapVectorStore, FaissVectorStore
from typer.testing import CliRunner

from ztok_rag import ZCompressor, ZStore, ZTokenIndex, ZtokError, cli, default_embedding
from ztok_rag.index import engines
from ztok_rag.index.contents import Contents
from ztok_rag.index.folder import IndexFolder, Manifest
from ztok_rag.llamaindex.arguments import parameters
from ztok_rag.storage.handle import has_handles

ENTRIES = 2
"""Of a text in a store: its tokens for all rates, and bits of its sentences."""

LIGHTHOUSE = (
    "The lighthouse on Brannock Point was built in 1871 by the engineer Ada Merrow. Its lamp "
    "burned whale oil until 1902, when the harbour board paid for an electric arc."
)
BAKERY = (
    "The bakery in Tolvan Street opens at five in the morning. Its owner, Piet Larsen, bakes rye "
    "bread in a wood oven that his grandfather brought over the mountains."
)
OBSERVATORY = (
    "The observatory above Quillmere has a telescope of ninety centimetres. Astronomers watch "
    "variable stars there on every cloudless night of the year."
)


class HashEmbedding(MockEmbedding):
    """Vectors that depend on the text, without a model."""

    def _vector(self, text: str) -> list[float]:  # type: ignore[override]
        return [1.0 + sum(map(ord, text[i :: self.embed_dim])) % 97 for i in range(self.embed_dim)]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._vector(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._vector(query)


EMBEDDING = HashEmbedding(embed_dim=8)

Kept = dict[str, str]
on_both_layouts = pytest.mark.parametrize(
    "kept", [{}, {"vector_store": "lance"}], ids=["in-memory", "on-disk"]
)
"""Run a test on an index in memory, and on one with text and vectors on disk."""


@pytest.fixture(autouse=True)
def tokenizer_left_as_it_was() -> Iterator[None]:
    before = llama_index.core.global_tokenizer
    yield
    llama_index.core.global_tokenizer = before


@pytest.fixture(autouse=True)
def one_model(compressor: ZCompressor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ztok_rag.index.index.default_compressor", lambda: compressor)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "corpus"


def document(name: str, text: str) -> Document:
    return Document(text=text, id_=name, metadata={"file": name})


def documents() -> list[Document]:
    return [document("lighthouse.txt", LIGHTHOUSE), document("bakery.txt", BAKERY)]


def build(path: Path, docs: list[Document] | None = None, **kwargs: object) -> ZTokenIndex:
    settings: dict[str, object] = {"embed_model": EMBEDDING, **kwargs}
    return ZTokenIndex.build(documents() if docs is None else docs, path, **settings)  # type: ignore[arg-type]


def load(path: Path, **kwargs: object) -> ZTokenIndex:
    return ZTokenIndex.load(path, **{"embed_model": EMBEDDING, **kwargs})  # type: ignore[arg-type]


def found(index: ZTokenIndex, text: str, top_k: int = 9) -> list[str | None]:
    """Document ids, best first."""
    return [
        item.node.ref_doc_id for item in index.as_retriever(similarity_top_k=top_k).retrieve(text)
    ]


def files_with(folder: Path, *words: str) -> list[Path]:
    """The files below a folder that hold one of the words, in their bytes or their name."""
    return [
        path
        for path in folder.rglob("*")
        for word in words
        if word in path.name or (path.is_file() and word.encode() in path.read_bytes())
    ]


# -- building and asking


@on_both_layouts
def test_answers_from_z_tokens_with_the_default_embedding(
    folder: Path, prompts: list[str], kept: Kept
) -> None:
    with ZTokenIndex.build(documents(), folder, **kept) as index:
        assert index.store.stats.compressed == 2
        response = index.query("Who built the lighthouse?", similarity_top_k=1)
        (prompt,) = prompts
        assert has_handles(prompt) and "whale" not in prompt
        (source,) = response.source_nodes
        assert source.node.ref_doc_id == "lighthouse.txt"
        assert source.node.get_content() == LIGHTHOUSE
        assert source.score is not None and 0 < source.score <= 1.001
        assert index.store.stats.compressed == 2
    settings = json.loads((folder / "ztok.json").read_text())
    assert (settings["embed_model"], settings["embed_dimension"]) == ("all-MiniLM-L6-v2", 384)
    again = ZTokenIndex.load(folder)
    assert found(again, "When does the bakery open?", 1) == ["bakery.txt"]
    with pytest.raises(ZtokError, match=r"384 dimensions.*pass ztok_rag\.default_embedding"):
        ZTokenIndex.load(folder, embed_model=EMBEDDING)


@on_both_layouts
def test_loaded_index_is_the_same_and_compresses_nothing(folder: Path, kept: Kept) -> None:
    index = build(folder, **kept)
    before = [(i.node_id, i.score) for i in index.as_retriever(similarity_top_k=2).retrieve(BAKERY)]
    held = index.stats()
    assert (held.documents, held.chunks, held.pending) == (2, 2, 0)
    assert held.source_tokens > held.z_tokens > 0 and held.rate == pytest.approx(4, rel=0.2)
    assert held.stored_bytes == index.store.size_bytes
    assert held.bytes_per_token == held.stored_bytes / held.source_tokens
    assert held.text_bytes == len(LIGHTHOUSE) + len(BAKERY)
    index.close()

    again = load(folder)
    assert [
        (i.node_id, i.score) for i in again.as_retriever(similarity_top_k=2).retrieve(BAKERY)
    ] == before
    assert again.stats() == held
    response = again.as_query_engine(again.llm(max_new_tokens=3), similarity_top_k=2).query("When?")
    assert len(response.source_nodes) == 2
    assert again.store.stats.compressed == 0


def test_chunks_are_measured_in_tokens_of_the_base(folder: Path, compressor: ZCompressor) -> None:
    text = " ".join([LIGHTHOUSE, BAKERY, OBSERVATORY])
    plain = Document(text=text, id_="all", metadata={})
    index = build(folder, [plain], chunk_size=40, chunk_overlap=0)
    chunks = [
        item.node.get_content() for item in index.as_retriever(similarity_top_k=20).retrieve("x")
    ]
    assert len(chunks) >= 3
    assert max(map(compressor.count_tokens, chunks)) <= 40


@on_both_layouts
def test_threads_query_while_the_index_changes(folder: Path, kept: Kept) -> None:
    index = build(folder, **kept)
    retriever = index.as_retriever(similarity_top_k=9)
    errors: list[Exception] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                assert {i.node.ref_doc_id for i in retriever.retrieve(BAKERY)} >= {"bakery.txt"}
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    index.insert(document("observatory.txt", OBSERVATORY))
    index.delete_ref_doc("lighthouse.txt")
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert set(found(index, BAKERY)) == {"bakery.txt", "observatory.txt"}


# -- changing


@on_both_layouts
def test_added_document_is_found_and_stays(folder: Path, kept: Kept) -> None:
    index = build(folder, **kept)
    index.insert(document("observatory.txt", OBSERVATORY))
    assert found(index, f"file: observatory.txt\n\n{OBSERVATORY}", 1) == ["observatory.txt"]
    again = load(folder)
    assert again.document_ids == ("bakery.txt", "lighthouse.txt", "observatory.txt")
    assert sorted(map(str, found(again, "x"))) == list(again.document_ids)
    with pytest.raises(ZtokError, match=r"observatory\.txt.*refresh_ref_docs"):
        again.insert(document("observatory.txt", "Other words."))


@on_both_layouts
def test_deletion_leaves_nothing_behind(folder: Path, compressor: ZCompressor, kept: Kept) -> None:
    index = build(folder, [*documents(), document("observatory.txt", OBSERVATORY)], **kept)
    words = ("Brannock", "lighthouse.txt")
    assert files_with(folder, *words)
    codes = index.store.get(compressor, LIGHTHOUSE)
    assert codes is not None
    stored = codes.to_bytes()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(stored in path.read_bytes() for path in files)

    index.delete_ref_doc("lighthouse.txt")
    assert files_with(folder, *words) == []
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert not any(stored in path.read_bytes() for path in files)
    assert len(index.store) == 2 * ENTRIES
    assert index.store.get(compressor, LIGHTHOUSE) is None
    assert set(found(index, LIGHTHOUSE)) == {"bakery.txt", "observatory.txt"}
    assert load(folder).stats().chunks == 2
    with pytest.raises(ZtokError, match=r"no document 'lighthouse\.txt'"):
        index.delete_ref_doc("lighthouse.txt")

    index.insert(documents()[0])  # vectors numbered after a deletion do not mix
    for name, text in (("bakery.txt", BAKERY), ("lighthouse.txt", LIGHTHOUSE)):
        (best, *_) = (
            load(folder).as_retriever(similarity_top_k=3).retrieve(f"file: {name}\n\n{text}")
        )
        assert best.node.ref_doc_id == name


@on_both_layouts
def test_z_tokens_that_another_document_needs_stay(folder: Path, kept: Kept) -> None:
    index = build(folder, [*documents(), document("copy.txt", BAKERY)], **kept)
    assert len(index.store) == 2 * ENTRIES
    index.delete_ref_doc("bakery.txt")
    assert len(index.store) == 2 * ENTRIES
    index.delete_ref_doc("copy.txt")
    assert len(index.store) == ENTRIES
    index.delete_ref_doc("lighthouse.txt")
    assert len(index.store) == 0
    assert found(load(folder), "anything") == []


@on_both_layouts
def test_refresh_changes_what_has_changed(folder: Path, kept: Kept) -> None:
    index = build(folder, **kept)
    node_ids = {
        i.node.ref_doc_id: i.node_id for i in index.as_retriever(similarity_top_k=9).retrieve("x")
    }
    new = [documents()[0], document("bakery.txt", OBSERVATORY), document("c.txt", "New words.")]
    result = index.refresh_ref_docs(new)
    assert (result.added, result.changed) == (("c.txt",), ("bakery.txt",))
    assert (result.unchanged, result.removed) == (("lighthouse.txt",), ())
    assert files_with(folder, "Tolvan") == []
    again = {
        i.node.ref_doc_id: i.node_id
        for i in load(folder).as_retriever(similarity_top_k=9).retrieve("x")
    }
    assert again["lighthouse.txt"] == node_ids["lighthouse.txt"]
    assert again["bakery.txt"] != node_ids["bakery.txt"]

    result = index.refresh_ref_docs(new[:2], remove_others=True)
    assert result.removed == ("c.txt",) and len(result.unchanged) == 2
    assert index.document_ids == ("bakery.txt", "lighthouse.txt")


def test_store_forgets_a_text_of_every_checkpoint(store: ZStore, compressor: ZCompressor) -> None:
    (own, other), _ = store.resolve(compressor, [LIGHTHOUSE, BAKERY])
    foreign = replace(own, fingerprint="f" * 16)
    store.put(LIGHTHOUSE, foreign)
    assert len(store) == 3
    store.close()  # moves the log into the database
    assert store.delete([LIGHTHOUSE, "never stored"]) == 2
    assert store.delete([LIGHTHOUSE]) == store.delete([]) == 0
    assert store.size_bytes == len(other.to_bytes())
    assert store.get(compressor, BAKERY) == other
    data = [path.read_bytes() for path in store.path.rglob("*") if path.is_file()]
    assert any(other.to_bytes() in content for content in data)
    for compressed in (own, foreign):
        assert not any(compressed.to_bytes() in content for content in data)
    assert store.prune(compressor.fingerprint, [BAKERY]) == 0
    assert store.prune("f" * 16, [BAKERY]) == 1
    assert store.size_bytes == 0


# -- interruptions


def test_failure_while_writing_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = build(folder)
    before = found(index, BAKERY)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("llama_index.core.storage.index_store.SimpleIndexStore.persist", full)
        with pytest.raises(ZtokError, match=r"no space left.*stays as it was"):
            index.delete_ref_doc("bakery.txt")
        with pytest.raises(ZtokError, match="no space left"):
            index.insert(document("observatory.txt", OBSERVATORY))
    for held in (index, load(folder)):
        assert found(held, BAKERY) == before
        assert held.stats().pending == 0
    assert files_with(folder, "Quillmere", "staging") == []
    index.delete_ref_doc("bakery.txt")
    assert load(folder).document_ids == ("lighthouse.txt",)


@pytest.mark.parametrize("step", ["before", "during", "after"])
def test_kill_leaves_the_old_index_or_the_new_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    index = build(folder)

    class Killed(BaseException):
        pass

    def killed(*args: object, **kwargs: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Contents, "_reload", lambda self: None)
        patch.setattr(IndexFolder, "_sweep", lambda self: None)
        if step == "before":
            patch.setattr(SimpleDocumentStore, "persist", killed)
        elif step == "during":
            patch.setattr("ztok_rag.index.folder.os.rename", killed)
        else:
            patch.setattr("ztok_rag.index.folder.shutil.rmtree", killed)
        with pytest.raises(Killed):
            index.delete_ref_doc("bakery.txt")
    again = load(folder)
    deleted = step == "after"
    assert again.document_ids == (
        ("lighthouse.txt",) if deleted else tuple(sorted(d.doc_id for d in documents()))
    )
    assert len(found(again, BAKERY)) == len(again.document_ids)
    assert {p.name for p in folder.iterdir()} == {".lock", "index", "store", "ztok.json"}
    assert bool(files_with(folder, "Tolvan")) != deleted


def test_killed_build_is_continued(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(SimpleDocumentStore, "persist", full)
        with pytest.raises(ZtokError):
            build(folder)
    with pytest.raises(ZtokError, match="no index"):
        load(folder)
    index = build(folder)
    assert index.store.stats.compressed == 0
    assert index.document_ids == ("bakery.txt", "lighthouse.txt")


def test_change_by_another_process_is_not_overwritten(folder: Path) -> None:
    index = build(folder)
    load(folder).delete_ref_doc("bakery.txt")
    with pytest.raises(ZtokError, match="load it again"):
        index.insert(document("observatory.txt", OBSERVATORY))
    index = load(folder)
    index.insert(document("observatory.txt", OBSERVATORY))
    assert index.document_ids == ("lighthouse.txt", "observatory.txt")


# -- other models and stores


@on_both_layouts
def test_other_checkpoint_warns_and_compresses_again(folder: Path, kept: Kept) -> None:
    build(folder, **kept).close()
    settings = Manifest.load(folder / "ztok.json")
    current = settings.fingerprint
    (folder / "ztok.json").write_text(replace(settings, fingerprint="f" * 16).to_json())
    index = load(folder)
    assert index.stats().pending == 2
    with pytest.warns(UserWarning, match=r"ffff.*recompress"):
        assert index.outdated
    assert index.recompress(rate=6) == 0  # they are there, and for all rates
    assert not index.outdated and index.rate == 6
    assert len(index.store) == 2 * ENTRIES
    assert json.loads((folder / "ztok.json").read_text())["fingerprint"] == current
    assert load(folder).stats().rate > 5


@on_both_layouts
def test_embedding_of_other_dimension_is_refused(folder: Path, kept: Kept) -> None:
    build(folder, **kept)
    with pytest.raises(ZtokError, match=r"8 dimensions.*4 dimensions.*build the index again"):
        load(folder, embed_model=HashEmbedding(embed_dim=4))
    with pytest.raises(ZtokError, match="pass that model as embed_model"):
        ZTokenIndex.load(folder)


def test_the_embedding_of_settings_is_used_where_it_was_set(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Settings, "_embed_model", None)  # as it is again after the test
    Settings.embed_model = EMBEDDING
    ZTokenIndex.build(documents(), folder)
    assert json.loads((folder / "ztok.json").read_text())["embed_dimension"] == 8
    assert ZTokenIndex.load(folder).embed_model is EMBEDDING
    Settings.embed_model = HashEmbedding(embed_dim=4)
    with pytest.raises(ZtokError, match=r"8 dimensions.*4 dimensions"):
        ZTokenIndex.load(folder)
    assert load(folder).embed_model is EMBEDDING


def test_vector_store_of_the_callers_own(folder: Path, tmp_path: Path) -> None:
    vectors = SimpleVectorStore()
    index = build(folder, vector_store=vectors)
    index.delete_ref_doc("bakery.txt")
    assert not (folder / "index" / "default__vector_store.json").exists()
    assert found(load(folder, vector_store=vectors), BAKERY) == ["lighthouse.txt"]
    with pytest.raises(ZtokError, match="SimpleVectorStore of yours"):
        load(folder)

    numbered = FaissMapVectorStore(faiss_index=faiss.IndexIDMap2(faiss.IndexFlatIP(8)))
    index = build(tmp_path / "faiss", vector_store=numbered)
    index.delete_ref_doc("lighthouse.txt")
    index.insert(documents()[0])
    assert sorted(map(str, found(index, BAKERY))) == ["bakery.txt", "lighthouse.txt"]
    assert len(numbered._faiss_id_to_node_id_map) == 2

    plain = FaissVectorStore(faiss_index=faiss.IndexFlatIP(8))
    index = build(tmp_path / "plain", vector_store=plain)
    with pytest.raises(ZtokError, match=r"cannot delete.*FaissMapVectorStore"):
        index.delete_ref_doc("lighthouse.txt")
    assert len(found(index, BAKERY)) == 2


# -- what LlamaIndex's own index takes


@pytest.fixture
def asked(folder: Path) -> ZTokenIndex:
    """An index whose vector store knows filters."""
    return build(folder, vector_store=SimpleVectorStore())


def test_no_argument_of_llama_index_is_unknown(asked: ZTokenIndex) -> None:
    of_retriever = parameters(VectorIndexRetriever.__init__) - {"index"}
    asked.as_retriever(**dict.fromkeys(of_retriever))
    assert of_retriever | {"vector_store_kwargs"} == engines._RETRIEVER


def test_the_vector_store_heeds_the_retrievers_arguments(asked: ZTokenIndex, folder: Path) -> None:
    only = MetadataFilters(filters=[MetadataFilter(key="file", value="bakery.txt")])
    everything = asked.as_retriever(similarity_top_k=9).retrieve("x")
    (node_id,) = (i.node_id for i in everything if i.node.ref_doc_id == "bakery.txt")
    for arguments in ({"filters": only}, {"node_ids": [node_id]}):
        retriever = asked.as_retriever(similarity_top_k=9, **arguments)
        assert [i.node.ref_doc_id for i in retriever.retrieve("x")] == ["bakery.txt"]
        assert len(asyncio.run(retriever.aretrieve("x"))) == 1
        answered = asked.as_query_engine(asked.llm(max_new_tokens=2), **arguments).query("When?")
        assert [i.node.ref_doc_id for i in answered.source_nodes] == ["bakery.txt"]
    other = HashEmbedding(embed_dim=8)
    assert asked.as_retriever(embed_model=other)._embed_model is other  # type: ignore[attr-defined]
    with pytest.raises(ZtokError, match=r"8 dimensions.*4 dimensions"):
        asked.as_retriever(embed_model=HashEmbedding(embed_dim=4))
    with pytest.raises(ZtokError, match=r"vector_store_query_mode is one of default, .*'best'"):
        asked.as_retriever(vector_store_query_mode="best")
    with pytest.raises(ZtokError, match="SimpleVectorStore does not heed 'doc_ids'"):
        asked.as_retriever(similarity_top_k=9, doc_ids=["bakery.txt"]).retrieve("x")
    hybrid = asked.as_retriever(vector_store_query_mode="hybrid")
    with pytest.raises(ZtokError, match="SimpleVectorStore cannot search"):
        hybrid.retrieve("x")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha", 0.5),
        ("sparse_top_k", 3),
        ("vector_store_query_mode", "hybrid"),
        ("vector_store_kwargs", {"nprobe": 3}),
    ],
)
def test_faiss_refuses_what_it_would_not_heed(folder: Path, name: str, value: object) -> None:
    index = build(folder)
    for make in (index.as_retriever, index.as_query_engine, index.as_chat_engine):
        with pytest.raises(ZtokError, match=f"FAISS .* does not heed '{name}'.*vector_store"):
            make(**{name: value})


def test_unknown_arguments_are_refused_by_name(asked: ZTokenIndex) -> None:
    for name in ("as_retriever", "as_query_engine", "as_chat_engine"):
        with pytest.raises(ZtokError, match=rf"{name}.* 'top_k'; it is now 'similarity_top_k'"):
            getattr(asked, name)(top_k=2)
        with pytest.raises(ZtokError, match=rf"{name}.* 'focus'; it is now 'query_aware'"):
            getattr(asked, name)(focus=True)
        with pytest.raises(ZtokError, match=rf"{name}.* has no argument 'temperature'"):
            getattr(asked, name)(temperature=0.5)
    with pytest.raises(ZtokError, match="ZTokenLLM has no argument 'temperature'"):
        asked.llm(temperature=0.5)
    with pytest.raises(ZtokError, match="ZTokenPostprocessor has no argument 'temperature'"):
        asked.postprocessor(temperature=0.5)
    with pytest.raises(ZtokError, match="llm is a LlamaIndex LLM, not 2"):
        asked.as_query_engine(2)  # type: ignore[arg-type]
    with pytest.raises(ZtokError, match=r"'context'.* has no argument 'response_mode'"):
        asked.as_chat_engine("context", response_mode="compact")
    with pytest.raises(ZtokError, match=r"chat_mode is one of best, .*'react'"):
        asked.as_chat_engine("react")
    with pytest.raises(ZtokError, match="cannot read Z-tokens"):
        asked.as_chat_engine("context", MockLLM())
    with pytest.raises(ZtokError, match="leave delete_from_docstore out"):
        asked.delete_ref_doc("bakery.txt", delete_from_docstore=False)


class OnlyTheBakery(BaseNodePostprocessor):
    """Drops all nodes but those of one document."""

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return [item for item in nodes if item.node.ref_doc_id == "bakery.txt"]


def test_the_query_engine_heeds_its_arguments(asked: ZTokenIndex, prompts: list[str]) -> None:
    llm = asked.llm(max_new_tokens=2)
    engine = asked.as_query_engine(
        llm,
        similarity_top_k=2,
        node_postprocessors=[OnlyTheBakery()],
        text_qa_template=PromptTemplate("Read {context_str} and say: {query_str}"),
        response_mode="simple_summarize",
        streaming=True,
        token_budget=50,
    )
    response = engine.query("When?")
    assert isinstance(response, StreamingResponse)
    assert [i.node.ref_doc_id for i in response.source_nodes] == ["bakery.txt"]
    list(response.response_gen)
    (prompt,) = prompts
    assert prompt.startswith("Read ") and prompt.endswith(" and say: When?") and has_handles(prompt)

    synthesizer = get_response_synthesizer(llm=llm, response_mode="accumulate")
    engine = asked.as_query_engine(response_synthesizer=synthesizer)
    assert str(engine.query("When?")).startswith("Response 1")
    for idle in ({"response_mode": "refine"}, {"llm": llm}, {"streaming": True}):
        with pytest.raises(ZtokError, match=f"has its own '{next(iter(idle))}'"):
            asked.as_query_engine(response_synthesizer=synthesizer, **idle)
    with pytest.raises(ZtokError, match="cannot read Z-tokens"):
        asked.as_query_engine(response_synthesizer=get_response_synthesizer(llm=MockLLM()))


@pytest.mark.parametrize("mode", ["best", "context", "condense_question", "simple"])
def test_chat_engines(asked: ZTokenIndex, prompts: list[str], mode: str) -> None:
    llm = asked.llm(max_new_tokens=2)
    if mode != "simple":
        arguments = {"similarity_top_k": 1, "node_postprocessors": [LongContextReorder()]}
    else:
        arguments = {"system_prompt": "Be brief."}
    response = asked.as_chat_engine(mode, llm, **arguments).chat("When does the bakery open?")
    assert has_handles(prompts[-1]) == (mode != "simple")
    assert len(response.source_nodes) == (mode != "simple")


# -- bad input


def test_bad_input_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ZtokError, match=r"two documents.*bakery\.txt"):
        build(folder, [*documents(), *documents()[1:]])
    with pytest.raises(ZtokError, match="did you mean rate=2"):
        build(folder, rate=0.5)
    with pytest.raises(ZtokError, match="from 1 to 64, not 65"):
        build(folder, rate=65)
    with pytest.raises(ZtokError, match="overlap"):
        build(folder, chunk_size=16, chunk_overlap=16)
    assert not folder.exists()
    with pytest.raises(ZtokError, match=r"no index.*ztok index"):
        load(folder)

    other = tmp_path / "photos"
    other.mkdir()
    (other / "index").mkdir()
    with pytest.raises(ZtokError, match="no ztok index"):
        build(other)
    assert (other / "index").is_dir()
    (other / "ztok.json").write_text("{}")
    with pytest.raises(ZtokError, match="settings file"):
        build(other)

    index = build(folder)
    with pytest.raises(ZtokError, match=r"similarity_top_k .* at least 1, not 0"):
        index.as_retriever(similarity_top_k=0)
    with pytest.raises(ZtokError, match="no words"):
        index.query(" ")
    for nothing in ("", " \n"):
        with pytest.raises(ZtokError, match="no words"):
            index.as_query_engine().query(nothing)
    with pytest.raises(ZtokError, match="cannot read Z-tokens"):
        index.as_query_engine(llm=MockLLM())
    with pytest.raises(ZtokError, match=r"'empty\.txt' has no words"):
        index.insert(document("empty.txt", ""))
    for file in (folder / "index").iterdir():
        file.write_bytes(b"junk")
    with pytest.raises(ZtokError, match=r"damaged.*build it again"):
        load(folder)


@on_both_layouts
def test_build_replaces_an_index(folder: Path, kept: Kept) -> None:
    build(folder, **kept).close()
    index = build(folder, [document("observatory.txt", OBSERVATORY)], rate=8, **kept)
    assert index.document_ids == load(folder).document_ids == ("observatory.txt",)
    assert len(index.store) == ENTRIES
    assert files_with(folder, "Brannock", "Tolvan") == []


def make_former(folder: Path) -> bytes:
    """Make an index look as an earlier version left it; returns its Z-tokens."""
    settings = json.loads((folder / "ztok.json").read_text())
    for name in ("slots", "checksum"):
        del settings[name]
    (folder / "ztok.json").write_text(
        json.dumps({**settings, "format": 1, "fingerprint": "e" * 16})
    )
    old = b"ZN1 Z-tokens of an earlier version"
    with ZStore(folder / "store") as store:
        for key in list(store._cache):
            if key.startswith("text-"):
                del store._cache[key]
                store._cache[f"nested-{'e' * 16}:{key.rpartition(':')[2]}"] = old
    return old


def test_index_of_another_version_says_what_to_do_and_is_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(folder).close()
    old = make_former(folder)
    with pytest.raises(ZtokError, match=r"another version.*ztok index FOLDER --store .*--rebuild"):
        load(folder)
    before = {p: p.read_bytes() for p in (folder / "index").iterdir()}

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(SimpleDocumentStore, "persist", full)
        with pytest.raises(ZtokError, match="stays as it was"):
            build(folder)
    assert {p: p.read_bytes() for p in (folder / "index").iterdir()} == before
    assert json.loads((folder / "ztok.json").read_text())["format"] == 1
    with ZStore(folder / "store") as store:
        assert [store._cache[key] for key in store._cache if "nested" in key] == [old, old]

    index = build(folder)
    assert index.store.stats.compressed == 0  # what the failed build compressed is kept
    assert len(index.store) == 2 * ENTRIES and load(folder).stats().pending == 0
    assert not [key for key in index.store._cache if "nested" in key]


# -- commands


def test_commands(tmp_path: Path) -> None:
    default_embedding()
    texts, store = tmp_path / "texts", tmp_path / "texts" / "store"
    (texts / "deep").mkdir(parents=True)
    (texts / "deep" / "lighthouse.md").write_text(LIGHTHOUSE)
    (texts / "bakery.txt").write_text(BAKERY)
    (texts / "image.bin").write_bytes(b"\xff\xfe\x00")
    (texts / ".hidden").write_text("secret")

    def ztok(*arguments: str) -> str:
        result = CliRunner().invoke(cli.app, list(arguments), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    out = ztok("index", str(texts), "--store", str(store), "--chunk-size", "128")
    assert "2 files: 2 added, 0 changed, 0 unchanged, 0 removed, 1 skipped; 2 chunks" in out
    out = ztok("ask", "Who built the lighthouse?", "--store", str(store), "--top-k", "1")
    assert "deep/lighthouse.md: The lighthouse on Brannock" in out and "bakery" not in out
    out = ztok("stats", "--store", str(store))
    assert "documents          2" in out and "per source token" in out

    (texts / "bakery.txt").write_text(OBSERVATORY)
    (texts / "deep" / "lighthouse.md").unlink()
    (texts / "new.txt").write_text("A new text.")
    out = ztok("index", str(texts), "--store", str(store), "--rate", "8")
    assert "2 files: 1 added, 1 changed, 0 unchanged, 1 removed" in out
    assert ZTokenIndex.load(store).rate == 8

    make_former(store)
    result = CliRunner().invoke(cli.app, ["stats", "--store", str(store)])
    assert isinstance(result.exception, ZtokError) and "--rebuild" in str(result.exception)
    out = ztok("index", str(texts), "--store", str(store), "--rebuild")
    assert "2 files: 2 added" in out
    index = ZTokenIndex.load(store)
    assert (index.rate, index.chunk_size) == (8, 128)
    ztok("index", str(texts), "--store", str(store), "--rebuild", "--chunk-size", "64")
    assert ZTokenIndex.load(store).chunk_size == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ask", "Who?", "--store", "{tmp}/none"], "there is no index"),
        (["stats", "--store", "{tmp}/none"], "there is no index"),
        (["index", "{tmp}/none", "--store", "{tmp}/s"], "is not a folder"),
        (["index", "{tmp}", "--store", "{tmp}/s"], "has no text files"),
    ],
)
def test_command_errors_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    filled = [argument.format(tmp=tmp_path) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["ztok", *filled])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert message in error and error.startswith("ztok: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_index_is_imported_without_libraries_that_it_may_not_need() -> None:
    code = (
        "import sys, ztok_rag.index.index; "
        "sys.exit(bool({'sentence_transformers', 'lancedb', 'pyarrow'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
