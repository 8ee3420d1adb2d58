"""The store: what it keeps, what it refuses, and how it recovers."""

import dataclasses
import pickle
import sqlite3
import stat
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import diskcache
import numpy as np
import pytest

from tests.conftest import BAKERY, PASSAGE
from ztok_rag.codec.compressed_text import CompressedText
from ztok_rag.codec.compressor import ZCompressor
from ztok_rag.codec.sequence import ZSequence, text_digest
from ztok_rag.codec.token_code import TokenCode
from ztok_rag.errors import HandleError, ZtokError
from ztok_rag.storage.handle import decode_handle, encode_handle
from ztok_rag.storage.store import ZStore, _content_hash

FINGERPRINT = "0123456789abcdef"
CODE = TokenCode.uniform(1 << 16)
SLOTS = 16


def test_a_rate_below_one_is_refused(store: ZStore) -> None:
    compressor = CountingCompressor()
    with pytest.raises(ZtokError, match=r"rate=0\.25: did you mean rate=4\?"):
        store.get_or_compress(compressor, ["text"], rate=0.25)  # type: ignore[arg-type]
    assert compressor.batches == []


class CountingCompressor:
    """Takes a text's characters as its tokens, and records every text it is given."""

    slots = SLOTS
    model = SimpleNamespace(token_code=CODE)

    def __init__(self, fingerprint: str = FINGERPRINT) -> None:
        self.fingerprint = fingerprint
        self.batches: list[list[str]] = []

    def compress_all_rates(self, texts: Sequence[str]) -> list[CompressedText]:
        self.batches.append(list(texts))
        return [compressed(text) for text in texts]

    def tokenize(self, texts: Sequence[str]) -> list[CompressedText]:
        return [
            dataclasses.replace(
                compressed(text, self.fingerprint), levels=np.zeros(len(text), np.uint8)
            )
            for text in texts
        ]


ANY = CountingCompressor()


def compressed(text: str, fingerprint: str = FINGERPRINT) -> CompressedText:
    return CompressedText(
        ids=np.array([ord(c) for c in text], np.int64),
        levels=np.ones(len(text), np.uint8),
        starts=np.arange(len(text)),
        characters=len(text),
        fingerprint=fingerprint,
        digest=text_digest(text),
        code=CODE,
    )


def sequence(text: str) -> ZSequence:
    """A text at rate 4."""
    return compressed(text).at(4.0, SLOTS)


def rewrite_rows(path: Path, assignment: str, *values: object) -> None:
    """Alter every entry of the closed store in `path`."""
    with sqlite3.connect(path / "cache.db") as database:
        database.execute(f"UPDATE Cache SET {assignment}", values)
    database.close()


def test_entries_survive_reopening(tmp_path: Path) -> None:
    kept = compressed("kept")
    with ZStore(tmp_path / "s") as store:
        store.put("kept", kept)
    with ZStore(tmp_path / "s") as store:
        assert store.get(ANY, "kept") == kept  # type: ignore[arg-type]
        assert len(store) == 1
        assert store.stats.hits == 1


def test_key_is_checkpoint_and_content(store: ZStore) -> None:
    store.put("text", compressed("text"))
    assert store.get(CountingCompressor("f" * 16), "text") is None  # type: ignore[arg-type]
    assert store.get(ANY, "text ") is None  # type: ignore[arg-type]
    assert store.stats.misses == 2


def test_only_absent_texts_are_compressed_in_one_batch(store: ZStore) -> None:
    compressor = CountingCompressor()
    store.get_or_compress(compressor, ["b"], 4.0)
    result = store.get_or_compress(compressor, ["a", "b", "a", "c"], 4.0)
    assert result == [sequence(text) for text in "abac"]
    assert compressor.batches == [["b"], ["a", "c"]]
    assert store.stats.compressed == 3
    assert store.get_or_compress(compressor, ["c", "a"], 4.0) == [sequence("c"), sequence("a")]
    assert len(compressor.batches) == 2
    assert store.get_or_compress(compressor, [], 4.0) == []


def test_threads_that_want_one_text_compress_it_once(store: ZStore) -> None:
    compressor = CountingCompressor()
    results: list[list[ZSequence]] = []

    def work() -> None:
        results.append(store.get_or_compress(compressor, ["x", "y"], 4.0))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[sequence("x"), sequence("y")]] * 8
    assert sum(map(len, compressor.batches)) == 2


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("value = substr(value, 1, length(value) - 3)", None),
        ("value = x'00'", None),
        ("value = ?", "text instead of bytes"),
        ("value = NULL", None),
        ("mode = 99", None),
        ("mode = 2, value = NULL, filename = ?", "no/such.val"),
    ],
)
def test_unreadable_entry_is_compressed_again_with_a_warning(
    tmp_path: Path, assignment: str, value: str | None
) -> None:
    compressor = CountingCompressor()
    with ZStore(tmp_path) as store:
        store.get_or_compress(compressor, ["abc"], 4.0)
    rewrite_rows(tmp_path, assignment, *([value] if value else []))
    with ZStore(tmp_path) as store:
        with pytest.warns(UserWarning, match="cannot be read.*compressed again"):
            assert store.get_or_compress(compressor, ["abc"], 4.0) == [sequence("abc")]
        assert store.stats.corrupt == 1
        assert compressor.batches == [["abc"], ["abc"]]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert store.get_or_compress(compressor, ["abc"], 4.0) == [sequence("abc")]


def test_entry_of_another_checkpoint_under_this_key_is_corrupt(store: ZStore) -> None:
    key = f"text-{FINGERPRINT}:{_content_hash('abc')}"
    store._cache[key] = compressed("abc", fingerprint="f" * 16).to_bytes()
    with pytest.warns(UserWarning, match="another text, checkpoint or version"):
        assert store.get(ANY, "abc") is None  # type: ignore[arg-type]


class Bomb:
    """Leaves a mark when it is unpickled."""

    mark: Path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


def test_pickled_entry_is_never_unpickled(tmp_path: Path) -> None:
    Bomb.mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(Bomb()))
    assert Bomb.mark.exists(), "the bomb works"
    Bomb.mark.unlink()

    folder = tmp_path / "s"
    with ZStore(folder) as store:
        store.put("abc", compressed("abc"))
    rewrite_rows(folder, f"mode = {diskcache.core.MODE_PICKLE}, value = ?", pickle.dumps(Bomb()))
    with ZStore(folder) as store, pytest.warns(UserWarning, match="not raw bytes"):
        assert store.get(ANY, "abc") is None  # type: ignore[arg-type]
    assert not Bomb.mark.exists()


def test_entry_cannot_name_a_file_outside_the_store(tmp_path: Path) -> None:
    outside = tmp_path / "outside.val"
    outside.write_bytes(sequence("abc").to_bytes())
    folder = tmp_path / "s"
    with ZStore(folder) as store:
        store.put("abc", compressed("abc"))
    rewrite_rows(folder, "mode = 2, value = NULL, filename = ?", "../outside.val")
    with ZStore(folder) as store:
        with pytest.warns(UserWarning, match="outside the store"):
            assert store.get(ANY, "abc") is None  # type: ignore[arg-type]
        store.put("abc", compressed("abc"))
    assert outside.exists()


@pytest.mark.parametrize("value", ["text", 5, {"a": 1}, None])
def test_only_bytes_can_be_written(store: ZStore, value: object) -> None:
    with pytest.raises(TypeError, match="is bytes"):
        store._cache.set("key", value)
    with pytest.raises(TypeError, match="key is str"):
        store._cache.set(("key",), b"value")


def test_damaged_database_is_set_aside(tmp_path: Path) -> None:
    with ZStore(tmp_path) as store:
        secret = store.secret
    (tmp_path / "cache.db").write_bytes(b"not a database, but long enough to be read" * 100)
    with pytest.warns(UserWarning, match="starts empty"):
        store = ZStore(tmp_path)
    with store:
        assert store.secret == secret
        compressor = CountingCompressor()
        assert store.get_or_compress(compressor, ["abc"], 4.0) == [sequence("abc")]
    assert len(list(tmp_path.glob("cache.db.damaged-*"))) == 1


def test_database_cut_short_never_fails_a_query(tmp_path: Path) -> None:
    texts = [f"text {i} " * 20 for i in range(300)]
    with ZStore(tmp_path) as store:
        store.get_or_compress(CountingCompressor(), texts, 4.0)
    data = (tmp_path / "cache.db").read_bytes()
    (tmp_path / "cache.db").write_bytes(data[: len(data) // 2])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ZStore(tmp_path) as store:
            result = store.get_or_compress(CountingCompressor(), texts, 4.0)
    assert result == [sequence(text) for text in texts]
    assert caught


def test_damaged_pages_never_fail_a_query(tmp_path: Path) -> None:
    texts = [f"text {i} " * 20 for i in range(300)]
    with ZStore(tmp_path) as store:
        store.get_or_compress(CountingCompressor(), texts, 4.0)
    data = bytearray((tmp_path / "cache.db").read_bytes())
    middle = range(len(data) // 2, len(data) // 2 + 40_000)
    data[middle.start : middle.stop] = bytes(i * 37 % 251 for i in middle)
    (tmp_path / "cache.db").write_bytes(data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ZStore(tmp_path) as store:
            result = store.get_or_compress(CountingCompressor(), texts, 4.0)
    assert result == [sequence(text) for text in texts]
    assert caught


def test_store_that_cannot_be_written_is_a_warning(
    store: ZStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(store._cache, "add", full)
    with pytest.warns(UserWarning, match="disk is full"):
        assert store.get_or_compress(CountingCompressor(), ["abc"], 4.0) == [sequence("abc")]


def test_secret_is_made_once_and_private(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    secret = ZStore(folder).secret
    assert len(secret) == 32
    assert ZStore(folder).secret == secret
    assert ZStore(tmp_path / "t").secret != secret
    assert stat.S_IMODE((folder / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {p.name for p in folder.glob("*secret*")} == {"secret"}

    (folder / "secret").chmod(0o644)
    ZStore(folder)
    assert stat.S_IMODE((folder / "secret").stat().st_mode) == 0o600


def test_damaged_secret_is_replaced_with_a_warning(tmp_path: Path) -> None:
    ZStore(tmp_path).close()
    (tmp_path / "secret").write_bytes(b"short")
    with pytest.warns(UserWarning, match="secret.*damaged"):
        assert len(ZStore(tmp_path).secret) == 32


def test_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ZtokError, match="give ZStore a writable folder"):
        ZStore(tmp_path / "file" / "store")


def test_default_folder_is_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZTOK_CACHE", str(tmp_path))
    with ZStore() as store:
        assert store.path == tmp_path / "store"


def test_entries_of_an_earlier_version_are_left_alone_until_they_are_pruned(store: ZStore) -> None:
    old = f"nested-{FINGERPRINT}:{_content_hash('abc')}"
    store._cache[old] = b"ZN1 of another format"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.get_or_compress(CountingCompressor(), ["abc"], 4.0)  # type: ignore[arg-type]
    assert store.stats.compressed == 1 and store._cache[old]
    assert store.prune(FINGERPRINT, ["abc"]) == 1
    assert list(store._cache) == [f"text-{FINGERPRINT}:{_content_hash('abc')}"]

    store._cache[old] = b"ZN1 of another format"
    assert store.delete(["abc"]) == 2


def test_length_needs_no_model(store: ZStore) -> None:
    store.put("kept", compressed("kept"))
    assert store.length(FINGERPRINT, "kept") == 4
    assert store.length(FINGERPRINT, "other") is None
    assert store.length("f" * 16, "kept") is None


def test_at_most_two_bytes_of_the_store_a_source_token(
    store: ZStore, compressor: ZCompressor
) -> None:
    text = " ".join([PASSAGE, BAKERY])
    (z,) = store.get_or_compress(compressor, [text])
    assert z.source_tokens == store.length(compressor.fingerprint, text)
    assert store.size_bytes <= 2.0 * z.source_tokens


# -- a secret of several machines


def test_stores_with_one_secret_accept_each_others_handles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = bytes(range(32))
    z = compressed("a text").at(2.0, SLOTS)
    one, two = (ZStore(tmp_path / name, secret=secret) for name in ("one", "two"))
    assert one.secret == two.secret == secret and one.id == two.id
    assert decode_handle(encode_handle(z, one.secret), two.secret, CODE) == z
    assert not (tmp_path / "one" / "secret").exists()
    assert pickle.loads(pickle.dumps(one)).secret == secret

    (tmp_path / "key").write_bytes(secret)
    monkeypatch.setenv("ZTOK_SECRET_FILE", str(tmp_path / "key"))
    assert ZStore(tmp_path / "three").secret == secret
    assert ZStore(tmp_path / "four", secret=secret[::-1]).secret == secret[::-1]
    monkeypatch.delenv("ZTOK_SECRET_FILE")
    other = ZStore(tmp_path / "three")
    assert other.secret != secret and other.id != one.id
    with pytest.raises(HandleError, match="not made with this store's secret"):
        decode_handle(encode_handle(z, other.secret), one.secret, CODE)


def test_a_bad_secret_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZtokError, match="32 bytes, and 5 were given"):
        ZStore(tmp_path / "store", secret=b"short")
    monkeypatch.setenv("ZTOK_SECRET_FILE", str(tmp_path / "absent"))
    with pytest.raises(ZtokError, match=r"ZTOK_SECRET_FILE=.*absent cannot be read"):
        ZStore(tmp_path / "store")
    assert not (tmp_path / "store").exists()
