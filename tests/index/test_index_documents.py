"""What people hand to an index: readers' output, odd metadata, empty files, generators."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

import faiss
import numpy as np
import pytest
from llama_index.core import Document, SimpleDirectoryReader
from llama_index.core.schema import QueryBundle, TextNode
from llama_index.core.vector_stores import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index.vector_stores.faiss import FaissMapVectorStore

from tests.index.test_index import (
    BAKERY,
    EMBEDDING,
    LIGHTHOUSE,
    OBSERVATORY,
    Kept,
    build,
    load,
    on_both_layouts,
)
from ztok_rag import ZCompressor, ZTokenIndex, ZtokError
from ztok_rag.index.documents import check_documents
from ztok_rag.index.vectors import FlatStore, deletable

TEXTS = {"lighthouse": LIGHTHOUSE, "bakery": BAKERY, "observatory": OBSERVATORY}


@pytest.fixture(autouse=True)
def one_model(compressor: ZCompressor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ztok_rag.index.index.default_compressor", lambda: compressor)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "corpus"


def lazily() -> Iterator[Document]:
    for name, text in TEXTS.items():
        yield Document(text=text, id_=name)


def paged(text: str, file: str, page: int | None = None) -> Document:
    """As a reader gives it: with a random id."""
    label = {} if page is None else {"page_label": str(page)}
    return Document(text=text, metadata={"file_path": file, **label})


# -- iterators


@on_both_layouts
def test_a_generator_is_read_once(folder: Path, kept: Kept) -> None:
    index = build(folder, lazily(), **kept)  # type: ignore[arg-type]
    assert set(index.document_ids) == set(TEXTS)
    result = index.refresh_ref_docs(lazily(), remove_others=True)
    assert len(result.unchanged) == 3 and not result.removed
    assert index.refresh_ref_docs(map(lambda d: d, lazily())).unchanged == result.unchanged


@pytest.mark.parametrize(
    "given", ["text", Document(text="text"), None, 3, ["text"], [TextNode(text="text")], b"text"]
)
def test_what_is_no_list_of_documents_is_refused(folder: Path, given: Any) -> None:
    with pytest.raises(ZtokError, match=r"put it in a list|wrap the text"):
        build(folder, given) if given is not None else ZTokenIndex.build(given, folder)
    assert not folder.exists()


@on_both_layouts
def test_what_would_empty_an_index_wants_to_be_said(folder: Path, kept: Kept) -> None:
    index = build(folder, **kept)
    nothing: list[Document] = []
    with pytest.raises(ZtokError, match=r"would empty the index.*allow_empty"):
        build(folder, nothing, **kept)
    with pytest.raises(ZtokError, match=r"would empty the index.*allow_empty"):
        index.refresh_ref_docs(iter(nothing), remove_others=True)
    with pytest.raises(ZtokError, match="would empty the index"):
        index.refresh_ref_docs([Document(text=" ", id_="x")], remove_others=True)
    assert len(load(folder).document_ids) == 2
    index.refresh_ref_docs(nothing)  # which removes nothing
    assert len(index.refresh_ref_docs(nothing, remove_others=True, allow_empty=True).removed) == 2
    assert build(folder, nothing, **kept).document_ids == ()


# -- readers that give random ids


def write(folder: Path, texts: dict[str, str]) -> list[Document]:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return SimpleDirectoryReader(str(folder)).load_data()


def test_a_folder_read_again_is_known_by_its_files(folder: Path, tmp_path: Path) -> None:
    index = build(folder, write(tmp_path / "texts", TEXTS))
    ids = index.document_ids
    again = index.refresh_ref_docs(write(tmp_path / "texts", {}))
    assert set(again.unchanged) == set(ids) and not (again.added or again.changed)

    (tmp_path / "texts" / "observatory.txt").unlink()
    changed = write(tmp_path / "texts", {"bakery": "It opens at six.", "mill": "A mill."})
    result = index.refresh_ref_docs(changed, remove_others=True)
    assert tuple(map(len, (result.added, result.changed, result.unchanged, result.removed))) == (
        1,
        1,
        1,
        1,
    )
    assert result.changed[0] in ids and result.removed[0] in ids
    assert len(load(folder).document_ids) == 3


def test_pages_of_a_file_are_told_apart(folder: Path) -> None:
    def read(second: str = BAKERY) -> list[Document]:
        return [paged(LIGHTHOUSE, "a.pdf", 1), paged(second, "a.pdf", 2), paged("Page.", "b.pdf")]

    index = build(folder, read())
    assert len(index.refresh_ref_docs(read()).unchanged) == 3
    result = index.refresh_ref_docs(read("New."))
    assert len(result.changed) == 1 and len(result.unchanged) == 2
    assert len(index.refresh_ref_docs(read("New.")).unchanged) == 3
    assert len(index.refresh_ref_docs([paged("Third.", "a.pdf", 3)]).added) == 1


@on_both_layouts
def test_parts_of_a_file_without_labels_are_known_by_their_text_first(
    folder: Path, kept: Kept
) -> None:
    parts = [LIGHTHOUSE, BAKERY, OBSERVATORY]
    index = build(folder, [paged(text, "a.md") for text in parts], **kept)
    result = index.refresh_ref_docs([paged(t, "a.md") for t in ("New.", BAKERY, LIGHTHOUSE)])
    assert len(result.unchanged) == 2 and len(result.changed) == 1 and not result.added
    assert len(index.document_ids) == 3


@on_both_layouts
def test_without_a_file_the_same_text_is_the_same_document(folder: Path, kept: Kept) -> None:
    texts = [LIGHTHOUSE, BAKERY]
    index = build(folder, [Document(text=text) for text in texts], **kept)
    result = index.refresh_ref_docs([Document(text=text) for text in [*texts, OBSERVATORY]])
    assert len(result.unchanged) == 2 and len(result.added) == 1


@on_both_layouts
def test_an_id_of_the_callers_own_is_never_replaced(folder: Path, kept: Kept) -> None:
    index = build(folder, [Document(text=BAKERY, id_="a", metadata={"file_path": "x.txt"})], **kept)
    other = Document(text=BAKERY, id_="b", metadata={"file_path": "x.txt"})
    assert index.refresh_ref_docs([other]).added == ("b",)
    assert index.refresh_ref_docs([paged("New.", "x.txt")]).changed == ("a",)


# -- documents without words


def test_empty_files_are_left_out_and_named(folder: Path, tmp_path: Path) -> None:
    texts = {**TEXTS, "todo-later": "", "spaces": " \n\t"}
    with pytest.warns(UserWarning, match=r"2 documents are left out.*(todo-later|spaces)"):
        index = build(folder, write(tmp_path / "texts", texts))
    assert len(index.document_ids) == 3
    with pytest.warns(UserWarning, match="left out for want of words"):
        assert not index.refresh_ref_docs(write(tmp_path / "texts", texts)).added


@on_both_layouts
def test_a_document_that_lost_its_words_is_removed(folder: Path, kept: Kept) -> None:
    index = build(folder, list(lazily()), **kept)
    assert index.refresh_ref_docs([Document(text="", id_="bakery")]).removed == ("bakery",)
    assert "bakery" not in load(folder).document_ids


# -- metadata


class Place:
    pass


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (datetime(2024, 5, 17, 8, 30), "2024-05-17 08:30:00"),
        (date(1987, 3, 2), "1987-03-02"),
        (PurePosixPath("archive/mill.txt"), "archive/mill.txt"),
        (Decimal("1.50"), "1.50"),
        (uuid.UUID(int=7), str(uuid.UUID(int=7))),
        (np.float32(0.5), "0.5"),
        ({"b", "a"}, ["a", "b"]),
        ((1, 2), [1, 2]),
        ({"when": [date(1987, 3, 2)]}, {"when": ["1987-03-02"]}),
        (b"raw", "b'raw'"),
        (None, None),
        (True, True),
        (["a", 1.5], ["a", 1.5]),
        ("half \ud835", "half \ufffd"),
        (["half \ud835"], ["half \ufffd"]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*surrogate")
def test_metadata_are_kept_as_they_are_shown(folder: Path, value: object, kept: object) -> None:
    given = Document(text=BAKERY, id_="b", metadata={"key": value})
    index = build(folder, [given])
    assert given.metadata["key"] is value
    (found,) = load(folder).as_retriever().retrieve("bread")
    assert found.node.metadata == {"key": kept}
    assert index.refresh_ref_docs([given]).unchanged == ("b",)


def test_metadata_that_have_no_text_are_refused_by_name(folder: Path) -> None:
    circle: dict[str, Any] = {}
    circle["self"] = circle
    for value in (Place(), {"deep": [Place()]}, {(1, 2): "tuple as a key"}, circle):
        with pytest.raises(ZtokError, match=r"'where' in the metadata of the document 'b'"):
            build(folder, [Document(text=BAKERY, id_="b", metadata={"where": value})])
    assert not folder.exists()


@on_both_layouts
def test_half_characters_are_repaired(folder: Path, kept: Kept) -> None:
    dirty = Document(text="The letter \ud835 stands for height.", id_="pdf \udcff")
    with pytest.warns(UserWarning, match=r"the document 'pdf .*surrogate pair at character 11"):
        index = build(folder, [dirty], **kept)
    assert index.document_ids == ("pdf \ufffd",)
    assert "\ud835" in dirty.text
    with pytest.warns(UserWarning, match="surrogate"):
        assert len(index.refresh_ref_docs([dirty]).unchanged) == 1
    with pytest.warns(UserWarning, match="the question has half a surrogate"):
        (item,) = index.as_retriever().retrieve(QueryBundle("What does \ud835 stand for?"))
    assert item.node.get_content() == "The letter \ufffd stands for height."


def test_two_halves_become_their_character() -> None:
    with pytest.warns(UserWarning, match="surrogate"):
        (kept,) = check_documents([Document(text="A pie \ud83e\udd67.")])
    assert kept.text == "A pie 🥧."


# -- what the retriever lets through


@pytest.fixture(scope="module", params=["in-memory", "on-disk", "on-disk, looked through"])
def numbered(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    compressor: ZCompressor,
) -> Iterator[ZTokenIndex]:
    documents = [
        Document(text=f"{text} {n}", id_=f"{name}-{n}", metadata={"n": n, "of": name})
        for n in range(3)
        for name, text in TEXTS.items()
    ]
    with pytest.MonkeyPatch.context() as patch:
        if "looked through" in request.param:
            patch.setattr("ztok_rag.index.large._FEW", 0)
        yield ZTokenIndex.build(
            documents,
            tmp_path_factory.mktemp("numbered") / "index",
            embed_model=EMBEDDING,
            compressor=compressor,
            vector_store=None if request.param == "in-memory" else "lance",
        )


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([("n", FilterOperator.EQ, 1)], {"lighthouse-1", "bakery-1", "observatory-1"}),
        (
            [("n", FilterOperator.GTE, 1), ("of", FilterOperator.EQ, "bakery")],
            {"bakery-1", "bakery-2"},
        ),
        ([("of", FilterOperator.IN, ["none"])], set()),
        ([("absent", FilterOperator.EQ, 1)], set()),
    ],
)
def test_filters_are_heeded(
    numbered: ZTokenIndex, filters: list[tuple[str, FilterOperator, Any]], expected: set[str]
) -> None:
    wanted = MetadataFilters(
        filters=[MetadataFilter(key=k, operator=o, value=v) for k, o, v in filters],
        condition=FilterCondition.AND,
    )
    retriever = numbered.as_retriever(similarity_top_k=9, filters=wanted)
    assert {item.node.ref_doc_id for item in retriever.retrieve("bread")} == expected
    asked = asyncio.run(retriever.aretrieve("bread"))
    assert {item.node.ref_doc_id for item in asked} == expected


def test_ids_are_heeded_and_the_best_come_first(numbered: ZTokenIndex) -> None:
    every = numbered.as_retriever(similarity_top_k=9).retrieve("bread")
    some = ["bakery-0", "lighthouse-2", "observatory-1"]
    found = numbered.as_retriever(similarity_top_k=2, doc_ids=some).retrieve("bread")
    best = [i for i in every if i.node.ref_doc_id in some][:2]
    assert [i.node.node_id for i in found] == [i.node.node_id for i in best]
    assert [i.score for i in found] == pytest.approx([i.score for i in best])
    one = every[4].node.node_id
    (only,) = numbered.as_retriever(node_ids=[one, "unknown"]).retrieve("bread")
    assert only.node.node_id == one


def test_a_filter_that_cannot_be_heeded_is_refused(numbered: ZTokenIndex) -> None:
    odd = MetadataFilters(
        filters=[MetadataFilter(key="n", operator=FilterOperator.GT, value="text")]
    )
    with pytest.raises(ZtokError, match="filters cannot be heeded"):
        numbered.as_retriever(filters=odd).retrieve("bread")


@pytest.mark.parametrize("kind", ["own", "flat"])
def test_ids_are_heeded_after_deletions(kind: str) -> None:
    rng = np.random.default_rng(0)
    nodes = [
        TextNode(text=str(n), id_=f"n{n}", embedding=rng.normal(size=8).tolist()) for n in range(20)
    ]
    flat = faiss.IndexIDMap2(faiss.IndexFlatIP(8))
    store = (
        FlatStore.empty(8) if kind == "own" else deletable(FaissMapVectorStore(faiss_index=flat))
    )
    assert isinstance(store, FlatStore)
    store.add(nodes)
    store.delete_nodes(["n3", "n0"])
    question = rng.normal(size=8).tolist()
    every = store.query(VectorStoreQuery(query_embedding=question, similarity_top_k=20))
    wanted = {"n1", "n3", "n7", "n19"}
    found = store.query(
        VectorStoreQuery(query_embedding=question, similarity_top_k=9, node_ids=[*wanted])
    )
    assert every.ids is not None and found.ids == [i for i in every.ids if i in wanted]


# -- places


def test_a_relative_folder_outlives_chdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "else"
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(home)
    index = build(Path("my_index"), list(lazily()))
    engine = index.as_query_engine(llm=index.llm(max_new_tokens=2))
    monkeypatch.chdir(elsewhere)
    before = index.store.stats.compressed
    asyncio.run(engine.aquery("When does the bakery open?"))
    index.close()
    engine.query("When does the bakery open?")
    assert index.store.stats.compressed == before
    index.insert(Document(text="A mill.", id_="mill"))
    assert len(load(home / "my_index").document_ids) == 4
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("name", ["$HOME", "${PATH}", "%PATH%", "~nobody-here", "a b", "ünïcode"])
def test_a_folder_may_have_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    index = build(Path(name, "index"))
    index.close()
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert len(load(tmp_path / name / "index").store) == 4


WITHOUT_POWERS = [
    "setpriv",
    "--bounding-set=-dac_override,-fowner",
    "--inh-caps=-dac_override,-fowner",
]

ASK = """
import json, sys
from tests.index.test_index import EMBEDDING
from llama_index.core import Document
from ztok_rag import ZTokenIndex, ZtokError
index = ZTokenIndex.load(sys.argv[1], embed_model=EMBEDDING)
answer = index.as_query_engine(llm=index.llm(max_new_tokens=4)).query("When does the bakery open?")
said = {"answer": str(answer), "compressed": index.store.stats.compressed}
for name, change in {
    "insert": lambda: index.insert(Document(text="A mill.")),
    "delete": lambda: index.delete_ref_doc("bakery.txt"),
    "recompress": lambda: index.recompress(),
    "store": lambda: index.store.delete(["A mill."]),
}.items():
    try:
        change()
    except ZtokError as error:
        said[name] = str(error)
print(json.dumps(said))
"""


@on_both_layouts
def test_a_read_only_index_answers_and_refuses_changes(folder: Path, kept: Kept) -> None:
    index = build(folder, **kept)
    index.close()
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        prefix = WITHOUT_POWERS if os.geteuid() == 0 else []
        probe = [*prefix, "touch", str(folder / "probe")]
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            pytest.skip("this user can write everywhere")
        done = subprocess.run(
            [*prefix, sys.executable, "-c", ASK, str(folder)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
    finally:
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said.pop("answer") and said.pop("compressed") == 0
    assert said.keys() == {"insert", "delete", "recompress", "store"}
    assert all("read-only" in error and "writable" in error for error in said.values())


def test_an_index_sent_elsewhere_is_loaded_there(folder: Path) -> None:
    index = build(folder)
    again = pickle.loads(pickle.dumps(index))
    assert again.document_ids == index.document_ids
    assert again.compressor.model is index.compressor.model
    mine = build(
        folder.with_name("other"),
        [],
        vector_store=FaissMapVectorStore(faiss_index=faiss.IndexIDMap2(faiss.IndexFlatIP(8))),
    )
    with pytest.raises(ZtokError, match="load it there"):
        pickle.dumps(mine)
