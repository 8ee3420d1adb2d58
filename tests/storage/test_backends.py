"""What every backend of a store does alike, in a folder and in Redis."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.redis_server import Server, needs_redis, running
from tests.storage.test_store import ANY, FINGERPRINT, CountingCompressor, compressed, sequence
from ztok_rag.errors import ZtokError
from ztok_rag.storage.store import ZStore

Make = Callable[..., ZStore]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("redis"), "--appendfsync", "no") as server:
        yield server


@pytest.fixture(params=["folder", pytest.param("redis", marks=needs_redis)])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Opens the same store each time, empty at first."""
    place = str(tmp_path / "store")
    if request.param == "redis":
        server: Server = request.getfixturevalue("server")
        server.client().flushall()
        place = server.url
    opened: list[ZStore] = []

    def make(**arguments: object) -> ZStore:
        opened.append(ZStore(place, **arguments))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def fill(store: ZStore, texts: str) -> None:
    """Keep each character as a text, with one entry of six bytes or so."""
    for text in texts:
        store.put_bytes("note", text, b"123456")


def held(store: ZStore, texts: str) -> str:
    found = store.get_bytes_many("note", list(texts))
    return "".join(text for text in texts if text in found)


def test_what_is_written_is_read_by_another_object(make: Make) -> None:
    first, second = make(), make()
    first.put("abc", compressed("abc"))
    assert second.get(ANY, "abc") == compressed("abc")  # type: ignore[arg-type]
    assert second.get(ANY, "abd") is None  # type: ignore[arg-type]
    assert first.secret == second.secret and first.id == second.id and len(first.secret) == 32
    assert len(second) == 1 and second.size_bytes == len(compressed("abc").to_bytes())
    assert second.lengths(FINGERPRINT, ["abc", "x"]) == {"abc": 3}


def test_the_first_to_write_the_code_of_a_text_wins(make: Make) -> None:
    class Other(CountingCompressor):
        """Gives other levels, as another machine may."""

        def compress_all_rates(self, texts):  # type: ignore[no-untyped-def]
            made = super().compress_all_rates(texts)
            for own in made:
                own.levels[:] = 5
            return made

    first, second = make(), make()
    first.put("abc", compressed("abc"))
    (theirs,) = Other().compress_all_rates(["abc"])
    assert theirs != compressed("abc")
    second.put("abc", theirs)
    assert second.get(ANY, "abc") == compressed("abc")  # type: ignore[arg-type]

    # Both find nothing, the other one is first, and all read what it wrote.
    second.delete(["abc"])
    compress = Other.compress_all_rates

    def slow(self: Other, texts: list[str]):  # type: ignore[no-untyped-def]
        first.put("abc", compressed("abc"))
        return compress(self, texts)

    Other.compress_all_rates = slow  # type: ignore[method-assign]
    (own,), count = second.resolve(Other(), ["abc"])  # type: ignore[arg-type]
    assert count == 1 and own == compressed("abc")


def test_a_batch_is_one_query(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make()
    texts = [f"text {i}" for i in range(40)]
    compressor = CountingCompressor()
    store.get_or_compress(compressor, texts)  # type: ignore[arg-type]
    asked = []
    get_many = store._cache.get_many
    monkeypatch.setattr(store._cache, "get_many", lambda k: (asked.append(len(k)), get_many(k))[1])
    result = store.get_or_compress(compressor, texts)  # type: ignore[arg-type]
    assert result == [sequence(text) for text in texts]
    assert asked == [40] and compressor.batches == [texts]


def test_large_batches_and_values(make: Make) -> None:
    store = make()
    data = {f"text {i}": os.urandom(50) for i in range(1203)}
    data |= {"large": os.urandom(3 * 2**20), "empty": b""}
    store.put_bytes_many("note", data)
    assert store.get_bytes_many("note", list(data)) == data
    assert len(store) == len(data) and store.size_bytes == sum(map(len, data.values()))
    assert store.size_of(["large", "text 7", "none"]) == 3 * 2**20 + 50
    assert store.delete([*list(data)[:1100], "large"]) == 1101
    assert store.size_bytes == sum(map(len, list(data.values())[1100:1203]))


def test_delete_prune_and_checkpoints(make: Make) -> None:
    store, other = make(), "f" * 16
    for text in "abc":
        store.put(text, compressed(text))
        store.put(text, compressed(text, other))
    fill(store, "ab")
    assert len(store) == 8
    assert store.delete(["a", "never"]) == 3
    assert store.delete([]) == 0
    assert store.delete_checkpoint(other) == 2 and store.delete_checkpoint(other) == 0
    store.put("b", compressed("b", other))
    assert store.prune(FINGERPRINT, ["b"]) == 2  # of another checkpoint, and c
    assert len(store) == 2 and held(store, "abc") == "b"
    assert store.prune(FINGERPRINT, ["b"]) == 0
    assert store.prune(FINGERPRINT, []) == 2 and len(store) == store.size_bytes == 0


def test_bytes_of_a_kind_are_replaced(make: Make) -> None:
    store = make()
    store.put_bytes("note", "a", b"1")
    store.put_bytes("note", "a", b"22")
    assert store.get_bytes("note", "a") == b"22" and store.size_bytes == 2
    with pytest.raises(ZtokError, match="has no colon"):
        store.put_bytes("a:b", "a", b"1")


# -- limits and pins


def test_the_least_recently_used_goes_first(make: Make) -> None:
    store = make(size_limit=30)
    fill(store, "abcde")
    assert held(store, "a") == "a"
    fill(store, "f")
    assert store.size_bytes == 30
    assert held(store, "abcdef") == "acdef"
    fill(store, "ghi")
    assert "ghi" in held(store, "abcdefghi") and store.size_bytes == 30


def test_a_clock_that_is_set_back_does_not_change_what_goes(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(size_limit=12)
    fill(store, "a")
    monkeypatch.setattr("time.time", lambda: 1000.0)
    fill(store, "bc")
    assert held(store, "abc") == "bc"


def test_what_an_index_pins_is_never_evicted(make: Make) -> None:
    store = make(size_limit=18)
    fill(store, "ab")
    store.pin("one", "abz")  # z comes later
    store.pin("two", "b")
    fill(store, "cdefghz")
    assert held(store, "abcdefghz") == "abz" and store.size_bytes == 18
    fill(store, "k")
    assert held(store, "abzk") == "abz", "more pinned than fits leaves no room"
    store.unpin("one", "ab")
    fill(store, "lmn")
    assert held(store, "ab") == "b" and held(store, "z") == "z"
    store.unpin("two", "b")
    fill(store, "opq")
    assert held(store, "bz") == "z"


def test_an_owner_deletes_what_nobody_else_needs(make: Make) -> None:
    store = make()
    fill(store, "abcd")
    store.pin("one", "abc")
    store.pin("two", "bc")
    assert store.delete(["a", "b"], owner="one") == 1
    assert held(store, "abcd") == "bcd"
    store.pin_only("one", "d")
    assert held(store, "abcd") == "bcd"
    store.pin_only("two", "")
    assert held(store, "abcd") == "d"
    assert list(store._cache.pinned("one")) and not list(store._cache.pinned("two"))


def test_to_unpin_what_is_not_pinned_is_no_use_of_it(make: Make) -> None:
    store = make(size_limit=12)
    fill(store, "ab")
    store.unpin("one", "a")
    fill(store, "c")
    assert held(store, "abc") == "bc"


@pytest.mark.parametrize("limit", [0, -1, True])
def test_a_limit_is_a_number_of_bytes(tmp_path: Path, limit: int) -> None:
    with pytest.raises(ZtokError, match="at least 1 byte"):
        ZStore(tmp_path, size_limit=limit)


def test_reading_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    store, other = ZStore(tmp_path, size_limit=100), ZStore(tmp_path)
    fill(store, "a")
    with other._cache._writing():  # type: ignore[attr-defined]
        begin = time.monotonic()
        assert held(store, "a") == "a"
        assert time.monotonic() - begin < 5
    fill(store, "b")
    assert held(store, "ab") == "ab"


# -- threads and processes


def test_threads_share_an_object(make: Make) -> None:
    store = make(size_limit=10_000)
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(30):
                store.put_bytes("note", f"{number} {i}", b"x" * i)
                assert store.get_bytes("note", f"{number} {i}") == b"x" * i
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(store) == 180 and store.size_bytes == 6 * sum(range(30))


def _write_in_child(store: ZStore, text: str) -> None:
    store.put(text, compressed(text))
    assert store.get(ANY, text) == compressed(text)  # type: ignore[arg-type]


def test_a_forked_process_uses_connections_of_its_own(make: Make) -> None:
    store = make()
    store.put("before", compressed("before"))
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=_write_in_child, args=(store, f"c{i}")) for i in range(3)]
    for child in children:
        child.start()
    for i in range(30):  # meanwhile
        assert store.get(ANY, "before") == compressed("before")  # type: ignore[arg-type]
        store.put_bytes("note", f"{i}", b"1")
    for child in children:
        child.join(30)
        assert child.exitcode == 0
    assert len(store) == 34


def test_a_pickled_copy_opens_the_same_store(make: Make) -> None:
    store = make(size_limit=1000)
    store.put("abc", compressed("abc"))
    copy = pickle.loads(pickle.dumps(store))
    assert copy.get(ANY, "abc") == compressed("abc")
    assert copy.secret == store.secret and copy.size_limit == 1000 and copy.name == store.name
    copy.close()


# -- against a model


class StoreMachine(RuleBasedStateMachine):
    """A store against dicts: of entries, of pins, and in the order of use."""

    place = ""
    limit = 60

    @initialize(limited=st.booleans())
    def open(self, limited: bool) -> None:
        self.limited = limited
        self.store = ZStore(self.place, size_limit=self.limit if limited else None)
        self.entries: dict[tuple[str, str], bytes] = {}  # from the least recently used on
        self.pins: dict[str, set[str]] = {"one": set(), "two": set()}
        self.store.prune("", [])
        for owner in self.pins:
            self.store.pin_only(owner, [])

    texts = st.sampled_from("abcdefgh")
    kinds = st.sampled_from(["note", "text-" + FINGERPRINT, "text-" + "f" * 16])
    owners = st.sampled_from(["one", "two"])

    def pinned(self, text: str) -> bool:
        return any(text in own for own in self.pins.values())

    def use(self, key: tuple[str, str]) -> None:
        self.entries[key] = self.entries.pop(key)

    def evict(self) -> None:
        while self.limited and sum(map(len, self.entries.values())) > self.limit:
            free = [key for key in self.entries if not self.pinned(key[1])]
            if not free:
                break
            del self.entries[free[0]]

    @rule(text=texts, kind=kinds, value=st.binary(max_size=20), replaces=st.booleans())
    def put(self, text: str, kind: str, value: bytes, replaces: bool) -> None:
        key = f"{kind}:{_hash(text)}"
        kept = self.store._entries.put({key: value}, replaces=replaces)
        there = self.entries.get((kind, text))
        if there is not None and not replaces:
            assert kept == {key: there}
        else:
            assert kept == {}
            self.entries.pop((kind, text), None)
            self.entries[kind, text] = value
        self.evict()

    @rule(text=texts, kind=kinds)
    def get(self, text: str, kind: str) -> None:
        assert self.store.get_bytes(kind, text) == self.entries.get((kind, text))
        if (kind, text) in self.entries:
            self.use((kind, text))

    @rule(gone=st.sets(texts), owner=st.sampled_from([None, "one", "two"]))
    def delete(self, gone: set[str], owner: str | None) -> None:
        others = [own for name, own in self.pins.items() if owner and name != owner]
        spared = set().union(*others)
        doomed = [key for key in self.entries if key[1] in gone - spared]
        assert self.store.delete(sorted(gone), owner=owner) == len(doomed)
        for key in doomed:
            del self.entries[key]

    @rule(keep=st.sets(texts, min_size=5))
    def prune(self, keep: set[str]) -> None:
        doomed = [k for k in self.entries if k[1] not in keep or k[0] == "text-" + "f" * 16]
        assert self.store.prune(FINGERPRINT, sorted(keep)) == len(doomed)
        for key in doomed:
            del self.entries[key]

    @rule(owner=owners, some=st.sets(texts, max_size=3))
    def pin(self, owner: str, some: set[str]) -> None:
        self.store.pin(owner, some)
        self.pins[owner] |= some

    @rule(owner=owners, text=texts)
    def unpin(self, owner: str, text: str) -> None:
        was = self.pinned(text)
        self.store.unpin(owner, [text])
        self.pins[owner].discard(text)
        if was and not self.pinned(text):
            for key in sorted(key for key in self.entries if key[1] == text):
                self.use(key)

    @rule(owner=owners, some=st.sets(texts, max_size=3))
    def pin_only(self, owner: str, some: set[str]) -> None:
        for text in sorted(self.pins[owner] - some):
            self.delete({text}, owner)
            self.unpin(owner, text)
        self.store.pin_only(owner, some)
        self.pins[owner] = set(some)

    @precondition(lambda self: hasattr(self, "store"))
    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = ZStore(self.place, size_limit=self.store.size_limit)

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "store"):
            assert len(self.store) == len(self.entries)
            assert self.store.size_bytes == sum(map(len, self.entries.values()))
            assert sorted(self.store._cache.kinds()) == sorted({kind for kind, _ in self.entries})

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
        gc.collect()


def _hash(text: str) -> str:
    from ztok_rag.storage.store import _content_hash

    return _content_hash(text)


def run_machine(place: str) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    machine = type("Machine", (StoreMachine,), {"place": place})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=12,
            stateful_step_count=25,
            deadline=None,
            database=None,
        ),
    )


def test_a_folder_is_like_the_model(tmp_path: Path) -> None:
    run_machine(str(tmp_path / "store"))
    shutil.rmtree(tmp_path / "store")


@needs_redis
def test_redis_is_like_the_model(server: Server) -> None:
    run_machine(f"{server.url}?prefix=model")
