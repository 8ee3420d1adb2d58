"""Indexes that share a store, in a folder and in Redis."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import pytest
from llama_index.core import Document
from typer.testing import CliRunner

from tests.index.test_index import (
    BAKERY,
    EMBEDDING,
    ENTRIES,
    LIGHTHOUSE,
    OBSERVATORY,
    build,
    document,
    load,
)
from tests.redis_server import needs_redis, running
from tests.training.tiny_base import SHAPE, tiny_model
from ztok_rag import ZCompressor, ZStore, ZTokenIndex, ZtokError, cli
from ztok_rag.cli import checks
from ztok_rag.cli.checks import Checks
from ztok_rag.cli.place import Place
from ztok_rag.index.contents import Contents
from ztok_rag.index.large import LargeContents


@pytest.fixture(scope="module")
def compressor() -> ZCompressor:
    """A tiny one: what is stored is looked at here, not what is answered."""
    with patch.dict(SHAPE, max_position_embeddings=4096):
        return ZCompressor(tiny_model())


@pytest.fixture(autouse=True)
def one_model(compressor: ZCompressor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ztok_rag.index.index.default_compressor", lambda: compressor)


@pytest.fixture(params=["folder", pytest.param("redis", marks=needs_redis)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The place of a store to share."""
    if request.param == "folder":
        yield str(tmp_path / "shared")
        return
    with running(tmp_path / "redis") as server:
        yield server.url


LAYOUTS = pytest.mark.parametrize(
    "layout",
    [
        pytest.param({}, id="small"),
        pytest.param(
            {"vector_store": "lance"},
            id="large",
            marks=pytest.mark.skipif(not find_spec("lancedb"), reason="lancedb is not installed"),
        ),
    ],
)


def pins(store: ZStore, path: Path) -> int:
    """Number of texts that the index in a folder has pinned."""
    return sum(map(len, store._cache.pinned((path / ".owner").read_text())))


def has(store: ZStore, compressor: ZCompressor, *texts: str) -> list[bool]:
    return [store.length(compressor.fingerprint, text) is not None for text in texts]


def test_indexes_share_a_store(url: str, tmp_path: Path, compressor: ZCompressor) -> None:
    store = ZStore(url)
    one = build(tmp_path / "one", store=store)
    assert store.stats.compressed == 2
    two = build(
        tmp_path / "two",
        [document("b", BAKERY), document("o", OBSERVATORY)],
        store=store,
    )
    assert store.stats.compressed == 3 and len(store) == 3 * ENTRIES
    assert two.store is store and not (tmp_path / "two" / "store").exists()
    held = one.stats()
    assert held.pending == 0 and 0 < held.stored_bytes < store.size_bytes

    one.delete_ref_doc("bakery.txt")
    one.delete_ref_doc("lighthouse.txt")
    texts = LIGHTHOUSE, BAKERY, OBSERVATORY
    assert has(store, compressor, *texts) == [False, True, True], "the other one needs it"
    two.delete_ref_doc("b")
    assert has(store, compressor, *texts) == [False, False, True]

    again = load(tmp_path / "two", store=url)
    sent = pickle.loads(pickle.dumps(again))
    assert again.query("How wide is the telescope?").source_nodes
    assert again.store.stats.compressed == 0
    assert sent.store.name == store.name and sent.store.secret == store.secret

    # Built anew, it keeps what both of its forms have, and nobody else's is touched.
    build(tmp_path / "one", [document("l", LIGHTHOUSE)], store=store)
    build(tmp_path / "one", [document("b", BAKERY)], store=store)
    assert has(store, compressor, *texts) == [False, True, True]


def test_an_index_says_which_store_it_needs(url: str, tmp_path: Path) -> None:
    build(tmp_path / "own").close()
    with pytest.raises(ZtokError, match="has a store of its own; leave store out"):
        load(tmp_path / "own", store=url)
    index = build(tmp_path / "own", store=url)
    assert not (tmp_path / "own" / "store").exists(), "what the former one left is gone"
    name = index.store.name
    assert json.loads((tmp_path / "own" / "ztok.json").read_text())["store"] == name
    with pytest.raises(ZtokError, match=r"are in the store .*; pass it as store"):
        load(tmp_path / "own")
    with pytest.warns(UserWarning, match=r"stay in the store .* delete them there with pin_only"):
        build(tmp_path / "own").close()
    with ZStore(url) as store:
        assert len(store) == 2 * ENTRIES
        store.pin_only((tmp_path / "own" / ".owner").read_text(), [])
        assert len(store) == 0


@LAYOUTS
def test_a_large_index_and_a_small_one_share_a_store(
    url: str, tmp_path: Path, compressor: ZCompressor, layout: dict[str, str]
) -> None:
    store, path = ZStore(url), tmp_path / "one"
    one = build(path, store=store, **layout)
    other = {} if layout else {"vector_store": "lance"}
    pytest.importorskip("lancedb")
    two = build(
        tmp_path / "two", [document("b", BAKERY), document("o", OBSERVATORY)], store=store, **other
    )
    assert one.is_large is bool(layout) and two.is_large is bool(other)
    assert not (path / "store").exists() and len(store) == 3 * ENTRIES
    held = one.stats()
    assert (held.documents, held.chunks, held.pending) == (2, 2, 0)
    assert held.stored_bytes == store.size_of([LIGHTHOUSE, BAKERY]) < store.size_bytes
    assert pins(store, path) == 2

    one.delete_ref_doc("bakery.txt")
    one.delete_ref_doc("lighthouse.txt")
    texts = LIGHTHOUSE, BAKERY, OBSERVATORY
    assert has(store, compressor, *texts) == [False, True, True], "the other one needs it"
    assert pins(store, path) == 0
    two.delete_ref_doc("b")
    assert has(store, compressor, *texts) == [False, False, True]
    one.insert(document("o2", OBSERVATORY))
    two.delete_ref_doc("o")
    assert has(store, compressor, *texts) == [False, False, True]

    again = load(path, store=url)
    sent = pickle.loads(pickle.dumps(again))
    assert again.query("How wide is the telescope?").source_nodes
    assert again.store.stats.compressed == 0
    assert sent.is_large is bool(layout) and sent.store.secret == store.secret

    # Built anew in the other layout, it keeps its own alone.
    build(path, [document("l", LIGHTHOUSE)], store=store, **other)
    assert has(store, compressor, *texts) == [True, False, False] and pins(store, path) == 1
    build(path, [document("b", BAKERY)], store=store, **layout)
    assert has(store, compressor, *texts) == [False, True, False] and pins(store, path) == 1


@LAYOUTS
def test_a_build_that_fails_pins_nothing(
    url: str, tmp_path: Path, layout: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lancedb")
    monkeypatch.setattr("ztok_rag.index.building._DOCUMENTS_AT_ONCE", 1)

    def broken() -> Iterator[Document]:
        yield document("o", OBSERVATORY)
        yield document("b2", BAKERY)
        assert pins(store, path) == before + 1, "those of the text that is new"
        raise OSError("the file is away")

    def fail() -> None:
        with pytest.raises(OSError, match="away"):
            ZTokenIndex.build(
                broken(), path, store=store, vector_store="lance", embed_model=EMBEDDING
            )

    store, path, before = ZStore(url), tmp_path / "index", 1
    fail()
    assert pins(store, path) == 0
    build(path, store=store, **layout)
    before = 2
    fail()
    assert pins(store, path) == 2 and load(path, store=store).stats().pending == 0
    store.delete([OBSERVATORY], owner="another")
    assert store.size_of([OBSERVATORY]) == 0


@LAYOUTS
def test_a_limit_spares_what_an_index_refers_to(
    url: str, tmp_path: Path, compressor: ZCompressor, layout: dict[str, str]
) -> None:
    with build(tmp_path / "index", store=url, **layout) as index:
        needed = index.store.size_bytes
    limited = ZStore(url, size_limit=needed + 200)
    for i in range(20):
        limited.put_bytes("note", f"text {i}", b"x" * 50)
    assert has(limited, compressor, LIGHTHOUSE, BAKERY) == [True, True]
    assert limited.size_bytes == needed + 200
    index = load(tmp_path / "index", store=limited)
    index.delete_ref_doc("bakery.txt")
    index.insert(document("o", OBSERVATORY))
    for i in range(20):
        limited.put_bytes("note", f"text {i}", b"x" * 50)
    assert has(limited, compressor, LIGHTHOUSE, BAKERY, OBSERVATORY) == [True, False, True]
    assert load(tmp_path / "index", store=url).stats().pending == 0


def test_an_index_of_before_pins_when_it_is_loaded(tmp_path: Path, compressor: ZCompressor) -> None:
    build(tmp_path / "index").close()
    with ZStore(tmp_path / "index" / "store") as store:
        store.unpin("index", [LIGHTHOUSE, BAKERY])  # as before there were pins
        assert store.has_pins("index") is False
    settings = json.loads((tmp_path / "index" / "ztok.json").read_text())
    for name in ("store", "docstore", "checksum"):
        del settings[name]
    (tmp_path / "index" / "ztok.json").write_text(json.dumps(settings))
    load(tmp_path / "index").close()
    with ZStore(tmp_path / "index" / "store", size_limit=1) as store:
        store.put_bytes("note", "text", b"x")
        assert has(store, compressor, LIGHTHOUSE, BAKERY) == [True, True]


@LAYOUTS
def test_a_change_that_fails_pins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: dict[str, str]
) -> None:
    index = build(tmp_path / "index", **layout)

    def full(*_: object, **__: object) -> None:
        raise ZtokError("no room")

    with monkeypatch.context() as context:
        context.setattr(Contents, "commit", full)
        context.setattr(LargeContents, "_change_vectors", full)
        with pytest.raises(ZtokError, match="no room"):
            index.refresh_ref_docs([document("o", OBSERVATORY), document("b2", BAKERY)])
    (pinned,) = index.store._cache.pinned("index")
    assert len(pinned) == 2, "and what was there is pinned as before"


@needs_redis
def test_documents_come_in_while_the_server_is_away(tmp_path: Path) -> None:
    with running(tmp_path / "redis") as server:
        index = build(tmp_path / "index", store=f"{server.url}")
        server.stop(kill=True)
        with pytest.warns(UserWarning, match="cannot be written"):
            index.insert(document("o", OBSERVATORY))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = index.query("How many centimetres has the telescope?").source_nodes
            assert {node.node.ref_doc_id for node in found} >= {"o"}
        with pytest.raises(ZtokError, match="cannot be deleted"):
            index.delete_ref_doc("bakery.txt")
        assert "bakery.txt" in index.document_ids
        server.start()
        index.close()  # writes what waits
        again = load(tmp_path / "index", store=server.url)
        assert again.stats().pending == 0 and len(again.document_ids) == 3
        (pinned,) = again.store._cache.pinned((tmp_path / "index" / ".owner").read_text())
        assert len(pinned) == 3


# -- commands


@needs_redis
def test_commands_take_a_url(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compressor: ZCompressor
) -> None:
    monkeypatch.setenv("ZTOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("ztok_rag.index.index.user_embedding", lambda: EMBEDDING)
    files = tmp_path / "files"
    files.mkdir()
    (files / "lighthouse.txt").write_text(LIGHTHOUSE)
    (files / "bakery.txt").write_text(BAKERY)
    with running(tmp_path / "redis", password="hush") as server:

        def call(*arguments: str) -> str:
            done = CliRunner().invoke(cli.app, arguments, catch_exceptions=True)
            assert done.exit_code == 0, (done.output, done.exception)
            assert "hush" not in done.output
            return done.output

        assert "2 added" in call("index", str(files), "--store", server.url)
        assert "2 unchanged" in call("index", str(files), "--store", server.url)
        said = call("ask", "Who built the lighthouse?", "--store", server.url)
        assert "lighthouse.txt: The lighthouse on" in said
        assert "2, of at most 256" in call("stats", "--store", server.url)
        place = Place.of(server.url)
        assert place.folder.parent == tmp_path / "cache" / "indexes" and place.folder.is_dir()
        assert len(ZStore(server.url)) == 2 * ENTRIES

        own = ("--folder", str(tmp_path / "elsewhere"))
        assert "2 added" in call("index", str(files), "--store", server.url, *own)
        assert "2, of at most 256" in call("stats", "--store", server.url, *own)

        found = Checks(f"{server.url}?prefix=other").check_store()
        assert "a store of 0 entries" in found and "hush" not in found
        with pytest.raises(ZtokError, match="was compressed by checkpoint"):  # the tiny one
            Checks(server.url).check_store()
        assert Checks(server.url).check_room()
        server.client().config_set("maxmemory-policy", "allkeys-lru")
        finding = checks.find("store", Checks(server.url).check_store)
        assert not finding.ok and "noeviction" in finding.text
    with pytest.raises(ZtokError, match="leave it out, as --store names"):
        Place.of("folder", tmp_path)
