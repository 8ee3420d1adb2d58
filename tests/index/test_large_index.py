"""Indexes with text and vectors on disk: what is written, what a kill leaves, any store."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores import (
    MetadataFilter,
    MetadataFilters,
    SimpleVectorStore,
)
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient
from typer.testing import CliRunner

from tests.index.test_index import (
    BAKERY,
    LIGHTHOUSE,
    OBSERVATORY,
    build,
    document,
    documents,
    files_with,
    found,
    load,
)
from ztok_rag import ZCompressor, ZStore, ZTokenIndex, ZtokError, cli
from ztok_rag.index.building import NewFiles
from ztok_rag.index.folder import IndexFolder, Manifest
from ztok_rag.index.lance import LanceStore
from ztok_rag.index.large import LargeContents

DIMENSION = 16


@pytest.fixture(autouse=True)
def one_model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def shared() -> ZCompressor:
        compressor: ZCompressor = request.getfixturevalue("compressor")
        return compressor

    monkeypatch.setattr("ztok_rag.index.index.default_compressor", shared)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "corpus"


# -- without a model: chunks with vectors made up from their names


def make(path: Path) -> LargeContents:
    """An empty index."""
    folder = IndexFolder(path)
    folder.claim()
    manifest = Manifest(4, 256, 0, "f" * 16, 16, "made up", DIMENSION, "lance", "", "sqlite")
    files = NewFiles(folder, manifest, ZStore(folder.store), None, None)
    with files.making() as contents:
        return files.adopt(contents)


def opened(path: Path) -> LargeContents:
    folder = IndexFolder(path)
    return LargeContents(folder, folder.read(), ZStore(folder.store))


def vector(name: str) -> list[float]:
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
    values: list[float] = np.random.default_rng(seed).standard_normal(DIMENSION).tolist()
    return values


def chunks(doc_id: str, count: int = 4) -> list[TextNode]:
    nodes = []
    for i in range(count):
        node = TextNode(text=f"{doc_id}, part {i}", id_=f"{doc_id}/{i}", metadata={"of": doc_id})
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=doc_id)
        node.embedding = vector(node.node_id)
        nodes.append(node)
    return nodes


def add(contents: LargeContents, doc_ids: Sequence[str], remove: Sequence[str] = ()) -> None:
    nodes = [node for doc_id in doc_ids for node in chunks(doc_id)]
    contents.change(nodes, {doc_id: f"hash of {doc_id}" for doc_id in doc_ids}, remove)


def nearest(contents: LargeContents, name: str, top_k: int = 1, **arguments: object) -> list[str]:
    query = VectorStoreQuery(query_embedding=vector(name), similarity_top_k=top_k)
    return [item.node_id for item in contents.search(query, **arguments)]


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_an_addition_rewrites_nothing_that_is_old(folder: Path) -> None:
    contents = make(folder)
    add(contents, [f"old {i}" for i in range(200)])
    vectors = folder / "index" / "vectors"
    before = files(vectors)
    size = (folder / "index" / "catalog.db").stat().st_size
    add(contents, ["new"])
    after = files(vectors)
    hint = "chunks.lance/_versions/latest_version_hint.json"
    assert {n: f for n, f in before.items() if n != hint}.items() <= after.items()
    new = sum(len(after[name][1]) for name in after.keys() - before.keys())
    assert 4 * 4 * DIMENSION < new < 10_000
    assert (folder / "index" / "catalog.db").stat().st_size - size < 200_000
    assert nearest(contents, "new/2") == ["new/2"] and nearest(contents, "old 77/1") == ["old 77/1"]


def test_optimize_joins_files_indexes_vectors_and_forgets(folder: Path) -> None:
    contents = make(folder)
    store = contents.vector_store
    assert isinstance(store, LanceStore)
    store.index_from = 400
    for start in range(0, 200, 20):
        add(contents, [f"d{i}" for i in range(start, start + 20)])
    add(contents, [], [f"d{i}" for i in range(100)])
    table = store.client.open_table("chunks")
    assert len(table.list_versions()) > 10 and not table.list_indices()
    contents.optimize()
    table = store.client.open_table("chunks")
    assert len(table.list_versions()) <= 2
    assert table.count_rows() == contents.chunk_count == 400
    assert {index.columns[0] for index in table.list_indices()} == {"id", "vector"}
    names = [f"d{i}/{i % 4}" for i in range(100, 200)]
    assert [nearest(contents, name) for name in names] == [[name] for name in names]
    exact = [nearest(contents, name, 5, exact=True) for name in names[:20]]
    quick = [nearest(contents, name, 5, nprobes=50) for name in names[:20]]
    assert sum(len({*a} & {*b}) for a, b in zip(exact, quick, strict=True)) >= 90
    for doc_id in ("d100", "d199"):  # wherever in the index they are
        query = VectorStoreQuery(query_embedding=vector("x"), similarity_top_k=9, doc_ids=[doc_id])
        assert len(contents.search(query, nprobes=1)) == 4
    add(contents, ["late"])
    assert nearest(contents, "late/3") == ["late/3"]  # which no index has yet
    assert nearest(opened(folder), "late/3") == ["late/3"]
    contents.optimize()
    assert nearest(opened(folder), "late/3") == ["late/3"]


def test_processes_see_each_others_changes_and_take_turns(folder: Path) -> None:
    one = make(folder)
    two = opened(folder)
    add(one, ["a", "b"])
    add(two, ["c"], ["a"])
    one.optimize()
    assert one.document_ids == two.document_ids == ("b", "c")
    assert nearest(two, "b/1") == ["b/1"] and nearest(one, "a/1") != ["a/1"]
    with pytest.raises(ZtokError, match=r"the same id.*refresh_ref_docs"):
        add(two, ["d", "b"])
    assert one.document_ids == ("b", "c") and one.chunk_count == 8
    assert nearest(one, "d/0") != ["d/0"]
    make(folder)
    with pytest.raises(ZtokError, match="load it again"):
        add(two, ["e"])


def test_ids_are_no_sql(folder: Path) -> None:
    contents = make(folder)
    odd = ["it's", 'say "x"', "a'); DROP TABLE document; --", "%_", "ü\U0001f967", "C:\\x\n"]
    add(contents, odd)
    for doc_id in odd:
        query = VectorStoreQuery(query_embedding=vector("x"), similarity_top_k=9, doc_ids=[doc_id])
        assert {item.node.ref_doc_id for item in contents.search(query)} == {doc_id}
        assert nearest(contents, f"{doc_id}/0") == [f"{doc_id}/0"]
    add(contents, [], odd[:3])
    assert set(contents.document_ids) == set(odd[3:]) and contents.chunk_count == 12


# -- kills


def grow(path: Path, first: int, told: Connection) -> None:
    """Change the index again and again, and tell the number of each change that is done."""
    contents = opened(path)
    told.send(None)
    for i in range(first, 10_000):
        add(contents, [f"{i}-{part}" for part in "abc"], [f"{i - 1}-a"] if i else [])
        told.send(i)
        if i % 4 == 3:
            contents.optimize()


def test_a_killed_change_is_whole_or_not_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = make(folder)
    rng = random.Random(0)
    # Its processes are forked from one that has imported this file and opened nothing.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    done = -1
    for _ in range(10):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=grow, args=(folder, done + 1, theirs))
        process.start()
        theirs.close()
        assert mine.recv() is None
        time.sleep(rng.uniform(0.01, 0.5))
        process.kill()
        last = done
        with suppress(EOFError):
            while True:
                last = mine.recv()
        process.join()
        # What was said to be done is there, and at most the next change.
        held = set(contents.document_ids)
        expected = [_after(last), _after(last + 1)]
        assert held in expected
        done = last + expected.index(held)
        again = opened(folder)
        ids = {f"{doc_id}/{i}" for doc_id in held for i in range(4)}
        with_vectors = nearest(again, "x", 10_000)
        assert set(with_vectors) == ids and len(with_vectors) == again.chunk_count
    assert done > 0
    add(contents, ["last"])
    assert nearest(contents, "last/0") == ["last/0"]
    assert set(nearest(contents, "x", 10_000)) == {
        f"{doc_id}/{i}" for doc_id in contents.document_ids for i in range(4)
    }


def _after(last: int) -> set[str]:
    """The documents after the change `last` of `GROW`."""
    return {f"{i}-{part}" for i in range(last + 1) for part in "abc"} - {
        f"{i}-a" for i in range(last)
    }


def test_a_kill_while_old_versions_are_purged_is_mended(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = make(folder)
    add(contents, ["a", "b"])
    store = contents.vector_store
    assert isinstance(store, LanceStore)
    # As if purge() had written a version of its own, and deleted the one that the catalog names.
    table = store.client.open_table("chunks")
    table.delete("id = 'nothing'")
    table.update(where="id = 'a/0'", values={"id": "a/0"})
    store.purge()
    again = opened(folder)
    assert nearest(again, "a/1") == ["a/1"]

    class Killed(BaseException):
        pass

    def killed(*args: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("ztok_rag.index.catalog.Rows.note_change", killed)
        with pytest.raises(Killed):
            add(again, ["lost"])
    with monkeypatch.context() as patch:
        patch.setattr(LanceStore, "add", killed)
        with pytest.raises(Killed):
            add(again, ["lost"])
    mended = opened(folder)
    add(mended, ["c"])
    assert mended.document_ids == ("a", "b", "c")
    assert len(nearest(mended, "x", 99)) == 12


def test_an_error_while_writing_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = make(folder)
    add(contents, ["a", "b"])

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LanceStore, "add", full)
        with pytest.raises(ZtokError, match=r"no space left.*stays as it was"):
            add(contents, ["c"], ["a"])
    assert contents.document_ids == ("a", "b")
    assert len(nearest(contents, "x", 99)) == 8  # warns of none that are not of the index
    add(contents, ["c"], ["a"])
    assert {i.split("/")[0] for i in nearest(contents, "x", 99)} == {"b", "c"}


def test_searches_go_on_while_the_index_is_optimized(folder: Path) -> None:
    contents = make(folder)
    add(contents, [f"d{i}" for i in range(50)])
    errors: list[Exception] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                assert nearest(contents, "d7/1") == ["d7/1"]
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(5):
        add(contents, [f"new {i}"])
        contents.optimize()
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors


# -- building


def test_a_build_that_fails_leaves_the_index_that_was_there(folder: Path) -> None:
    build(folder, vector_store="lance").close()

    def broken() -> Iterator[object]:
        yield document("observatory.txt", OBSERVATORY)
        raise RuntimeError("the reader stopped")

    with pytest.raises(RuntimeError, match="the reader stopped"):
        build(folder, broken(), vector_store="lance")  # type: ignore[arg-type]
    index = load(folder)
    assert index.document_ids == ("bakery.txt", "lighthouse.txt")
    assert found(index, BAKERY, 1) == ["bakery.txt"]
    names = {path.name for path in folder.iterdir()}
    assert names == {".lock", "index", "store", "ztok.json"}
    with pytest.raises(ZtokError, match=r"two documents.*bakery\.txt"):
        build(folder, [*documents(), documents()[1]], vector_store="lance")
    assert {path.name for path in folder.iterdir()} == names


def test_what_a_killed_build_has_left_is_removed(folder: Path) -> None:
    folder.mkdir()
    ours = IndexFolder(folder)
    left = folder / ".building-abc"
    left.mkdir()
    (left / "catalog.db").write_text("Brannock")
    for name in (".lock", ".building-abc.lock"):
        (folder / name).touch()
    ours.claim()  # a first build was killed; another may be made
    with ours.building() as target:
        assert not left.exists() and target.is_dir()
        with IndexFolder(folder).locked():
            assert target.is_dir()  # another process leaves it alone
    assert {path.name for path in folder.iterdir()} == {".lock"}


def test_a_layout_is_changed_by_building_anew(folder: Path) -> None:
    build(folder).close()
    index = build(folder, vector_store="lance")
    assert index.document_ids == ("bakery.txt", "lighthouse.txt")
    assert {path.name for path in (folder / "index").iterdir()} == {"catalog.db", "vectors"}
    assert files_with(folder, "Tolvan") == [folder / "index" / "catalog.db"]
    again = pickle.loads(pickle.dumps(index))
    assert found(again, f"file: bakery.txt\n\n{BAKERY}", 1) == ["bakery.txt"]
    assert load(folder, vector_store="lance", docstore="sqlite").rate == 4
    build(folder)
    assert "catalog.db" not in {path.name for path in (folder / "index").iterdir()}
    with pytest.raises(ZtokError, match="has its own vectors"):
        load(folder, vector_store="lance")


def test_damaged_files_are_named(folder: Path) -> None:
    make(folder)
    (folder / "index" / "catalog.db").write_bytes(b"junk" * 9999)
    with pytest.raises(ZtokError, match=r"damaged.*build it again"):
        opened(folder)
    make(folder)
    for path in (folder / "index" / "vectors").rglob("*.manifest"):
        path.write_bytes(b"junk")
    with pytest.raises(ZtokError, match=r"damaged.*build it again"):
        opened(folder)


# -- other stores


def test_any_store_will_do(folder: Path) -> None:
    client = QdrantClient(location=":memory:")
    vectors = QdrantVectorStore(collection_name="chunks", client=client)
    texts = SimpleDocumentStore()
    index = build(folder, vector_store=vectors, docstore=texts)
    assert files_with(folder, "Brannock", "Tolvan") == []
    assert {chunk.get_content() for chunk in texts.docs.values()} == {LIGHTHOUSE, BAKERY}
    assert all(chunk.embedding is None for chunk in texts.docs.values())
    assert found(index, f"file: bakery.txt\n\n{BAKERY}", 1) == ["bakery.txt"]
    assert index.stats().chunks == 2 and index.stats().pending == 0
    index.insert(document("observatory.txt", OBSERVATORY))
    only = MetadataFilters(filters=[MetadataFilter(key="file", value="observatory.txt")])
    retriever = index.as_retriever(similarity_top_k=9, filters=only)
    assert [item.node.ref_doc_id for item in retriever.retrieve("x")] == ["observatory.txt"]
    index.delete_ref_doc("bakery.txt")
    assert len(texts.docs) == client.count("chunks").count == 2
    result = index.refresh_ref_docs([document("lighthouse.txt", "It is dark now.")])
    assert result.changed == ("lighthouse.txt",)
    index.optimize()

    again = load(folder, vector_store=vectors, docstore=texts)
    assert set(found(again, "x")) == {"lighthouse.txt", "observatory.txt"}
    with pytest.raises(ZtokError, match=r"vectors .* are in a QdrantVectorStore of yours; pass"):
        load(folder, docstore=texts)
    with pytest.raises(ZtokError, match=r"text .* is in a SimpleDocumentStore of yours; pass"):
        load(folder, vector_store=vectors)
    with pytest.raises(ZtokError, match="load it there"):
        pickle.dumps(again)


def test_text_on_disk_with_vectors_elsewhere(folder: Path) -> None:
    vectors = SimpleVectorStore()
    index = build(folder, docstore="sqlite", vector_store=vectors)
    assert {path.name for path in (folder / "index").iterdir()} == {"catalog.db"}
    index.delete_ref_doc("bakery.txt")
    assert found(load(folder, vector_store=vectors), "x") == ["lighthouse.txt"]
    with pytest.raises(ZtokError, match=r"vector_store is a LlamaIndex .* or 'lance', not 'faiss'"):
        build(folder, vector_store="faiss")
    with pytest.raises(ZtokError, match=r"docstore is a LlamaIndex .* or 'sqlite', not 'lance'"):
        build(folder, docstore="lance")


def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(folder, vector_store="lance").close()
    monkeypatch.setitem(sys.modules, "lancedb", None)
    for use in (lambda: build(folder, vector_store="lance"), lambda: load(folder)):
        with pytest.raises(ZtokError, match=r"not installed \(lancedb\).*ztok-rag\[lance\]"):
            use()
    monkeypatch.undo()
    assert len(load(folder).document_ids) == 2


def test_lance_refuses_what_it_would_not_heed(folder: Path) -> None:
    index = build(folder, vector_store="lance")
    with pytest.raises(ZtokError, match=r"LanceDB .* does not heed 'alpha'"):
        index.as_retriever(alpha=0.5)
    with pytest.raises(ZtokError, match=r"cannot search as it is asked to .*'speed'"):
        index.as_retriever(vector_store_kwargs={"speed": 3}).retrieve("x")
    assert len(index.as_retriever(vector_store_kwargs={"nprobes": 3}).retrieve("x")) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_process_forked_from_one_that_searched_is_refused(folder: Path) -> None:
    contents = make(folder)
    add(contents, ["a"])
    assert nearest(contents, "a/2") == ["a/2"]
    child = os.fork()
    if not child:
        try:
            nearest(contents, "a/2")
        except ZtokError as error:
            os._exit(0 if "was forked" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


def test_the_command_keeps_a_large_index(tmp_path: Path) -> None:
    texts, store = tmp_path / "texts", tmp_path / "store"
    texts.mkdir()
    (texts / "bakery.txt").write_text(BAKERY)

    def ztok(*arguments: str) -> None:
        result = CliRunner().invoke(
            cli.app,
            ["index", str(texts), "--store", str(store), *arguments],
            catch_exceptions=False,
        )
        assert result.exit_code == 0, result.output

    ztok()
    with pytest.raises(ZtokError, match="--rebuild"):
        CliRunner().invoke(
            cli.app,
            ["index", str(texts), "--store", str(store), "--large"],
            catch_exceptions=False,
        )
    ztok("--large", "--rebuild")
    (texts / "lighthouse.txt").write_text(LIGHTHOUSE)
    ztok()
    ztok("--rebuild")
    index = ZTokenIndex.load(store)
    assert index.is_large and index.document_ids == ("bakery.txt", "lighthouse.txt")
