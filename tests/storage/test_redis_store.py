"""A store in Redis: its URL, its secret, and faults of a real server."""

from __future__ import annotations

import logging
import pickle
import shutil
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.redis_server import Server, needs_redis, running
from tests.storage.test_store import ANY, CODE, SLOTS, Bomb, CountingCompressor, compressed
from ztok_rag.errors import HandleError, ZtokError
from ztok_rag.storage import pending, redis_backend
from ztok_rag.storage.handle import decode_handle, encode_handle
from ztok_rag.storage.store import ZStore
from ztok_rag.storage.url import StoreUrl

pytestmark = needs_redis


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(redis_backend, "PAUSE_SECONDS", 0.0)
    with running(tmp_path / "redis") as server:
        yield server


def quick(server: Server, seconds: float = 0.2) -> str:
    """A URL with short time-outs."""
    return f"{server.url}?socket_timeout={seconds}&socket_connect_timeout={seconds}"


def resolve(store: ZStore, *texts: str) -> int:
    """Ask for texts, which must be right; the number that had to be compressed."""
    found, count = store.resolve(CountingCompressor(), list(texts))  # type: ignore[arg-type]
    assert found == [compressed(text) for text in texts]
    return count


# -- URLs


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("redis://localhost", "redis://localhost:6379/0"),
        ("rediss://me:pa%40ss@host:6380/3", "rediss://host:6380/3"),
        ("redis://:pw@[::1]:1/2?prefix=mine&socket_timeout=2", "redis://[::1]:1/2?prefix=mine"),
        ("unix:///run/redis.sock?db=4&password=pw", "unix:///run/redis.sock?db=4"),
        ("redis://h?password=pw", "redis://h:6379/0"),
    ],
)
def test_the_name_of_a_url_has_no_password(url: str, name: str) -> None:
    parsed = StoreUrl.parse(url)
    assert parsed.name == name and repr(parsed) == f"StoreUrl({name!r})"
    assert "prefix" not in parsed.for_client


@pytest.mark.parametrize(
    "url",
    [
        *("redis://:sec/ret@host:1/0", "redis://:sec?ret@host:1/0", "redis://:sec#ret@host:1/0"),
        *("redis://:secret@host:1/zero", "redis://:secret@/0", "redis://:secret@host:99999"),
        *("redis://:secret@host?prefix=", "unix://?password=secret", "redis://:se[cret@host"),
        *("redis://:secret@host?decode_responses=1", "http://:secret@host", "redis://secret:@"),
    ],
)
def test_a_malformed_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(ZtokError) as caught:
        ZStore(url)
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert "sec" not in str(caught.value).replace("secret of", "")
    assert "cret" not in shown.replace("tests/storage", "").replace(url, "")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ZtokError, match=r"pip install 'ztok-rag\[redis\]'"):
        ZStore("redis://localhost")


def test_a_password_is_never_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with (
        running(tmp_path / "redis", password="hush-hush") as server,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        store = ZStore(quick(server))
        assert resolve(store, "abc") == 1
        shown = [repr(store), str(store), store.name, repr(store.__reduce__()), repr(vars(store))]
        shown += [repr(store._cache), repr(vars(store._cache))]
        copy = pickle.loads(pickle.dumps(store))
        assert resolve(copy, "abc") == 0

        for url in (
            server.url.replace("hush-hush", "hush-wrong"),
            server.url.replace(":hush-", ""),
        ):
            with pytest.raises(ZtokError, match="refuses the user or the password") as error:
                ZStore(url)
            shown += traceback.format_exception(error.value)
            with pytest.raises(ZtokError, match="refuses"):  # also where the secret is given
                ZStore(url, secret=bytes(32))
        server.stop(kill=True)
        assert resolve(store, "abc", "new") == 2
        with pytest.raises(ZtokError) as error:
            store.delete(["abc"])
        shown += [*traceback.format_exception(error.value), *map(str, caught), caplog.text]
        assert len(caught) >= 2
    assert not [text for text in shown if "hush" in text]


def test_unix_sockets_and_prefixes(server: Server, tmp_path: Path) -> None:
    socket = tmp_path / "redis.sock"
    server.stop()
    server.options = ("--unixsocket", str(socket))
    server.start()
    with ZStore(f"unix://{socket}?db=1") as store, ZStore(f"unix://{socket}?db=1&prefix=b") as two:
        assert resolve(store, "abc") == 1 and resolve(two, "abc") == 1
        assert store.secret != two.secret
        assert two.prune("", []) == 1 and len(store) == 1
    with pytest.raises(ZtokError, match="has no folder"):
        _ = store.path


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_tls_checks_who_the_server_is(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-keyout", key, "-out", certificate, "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost"),
        ],
        check=True,
        capture_output=True,
    )
    with running(tmp_path / "plain") as server:
        port = server.port  # free after it has stopped
    options = ("--tls-port", str(port), "--tls-cert-file", str(certificate))
    options += ("--tls-key-file", str(key), "--tls-auth-clients", "no")
    with running(tmp_path / "redis", *options):
        trusted = f"rediss://localhost:{port}?ssl_ca_certs={certificate}"
        with ZStore(trusted) as store:
            assert resolve(store, "abc") == 1
        with pytest.raises(ZtokError, match=r"certificate verify failed"):
            ZStore(f"rediss://localhost:{port}")
        with pytest.raises(ZtokError, match=r"certificate verify failed"):  # of another host
            ZStore(trusted.replace("localhost", "127.0.0.1"))


# -- the secret


def test_machines_that_share_a_server_accept_each_others_handles(server: Server) -> None:
    stores: list[ZStore] = []
    threads = [threading.Thread(target=lambda: stores.append(ZStore(server.url))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({store.secret for store in stores}) == 1, "the first one's holds for all"
    one, two = stores[:2]
    z = compressed("a text").at(2.0, SLOTS)
    assert decode_handle(encode_handle(z, one.secret), two.secret, CODE) == z
    assert one.secret not in repr(vars(one._cache)).encode()

    foreign = ZStore(f"{server.url}?prefix=another")
    with pytest.raises(HandleError, match="not made with this store's secret"):
        decode_handle(encode_handle(z, foreign.secret), two.secret, CODE)


def test_a_given_secret_is_not_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ZStore(server.url, secret=b"s" * 32).secret == b"s" * 32
    (tmp_path / "key").write_bytes(b"f" * 32)
    with monkeypatch.context() as patch:
        patch.setenv("ZTOK_SECRET_FILE", str(tmp_path / "key"))
        assert ZStore(server.url).secret == b"f" * 32
    assert server.client().get("ztok:secret") is None
    server.client().set("ztok:secret", b"short")
    with pytest.raises(ZtokError, match="damaged; delete its key 'ztok:secret'"):
        ZStore(server.url)


def test_a_database_of_another_version_is_refused(server: Server) -> None:
    server.client().set("ztok:format", b"99")
    with pytest.raises(ZtokError, match=r"another version.*another \?prefix=NAME"):
        ZStore(server.url)


def test_a_policy_that_evicts_is_a_warning(server: Server) -> None:
    server.client().config_set("maxmemory-policy", "allkeys-lru")
    with pytest.warns(UserWarning, match="allkeys-lru.*set maxmemory-policy to noeviction"):
        ZStore(server.url)
    server.client().config_set("maxmemory-policy", "noeviction")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ZStore(server.url)


# -- what others put there


def test_a_planted_pickle_is_never_unpickled(server: Server, tmp_path: Path) -> None:
    Bomb.mark = tmp_path / "mark"
    store = ZStore(server.url)
    resolve(store, "abc")
    (name,) = server.client().keys("ztok:text:*")
    (kind,) = server.client().hkeys(name)
    server.client().hset(name, kind, pickle.dumps(Bomb()))
    with pytest.warns(UserWarning, match="cannot be read.*compressed again"):
        assert resolve(store, "abc") == 1
    assert not Bomb.mark.exists() and resolve(store, "abc") == 0
    assert store.stats.corrupt == 1


def test_keys_of_another_type_do_not_fail_a_query(server: Server) -> None:
    store = ZStore(server.url)
    resolve(store, "abc")
    (name,) = server.client().keys("ztok:text:*")
    server.client().delete(name)
    server.client().set(name, b"a string")
    with pytest.warns(UserWarning, match="wrong kind of value"):
        assert resolve(store, "abc") == 1


def test_all_keys_gone(server: Server) -> None:
    store = ZStore(server.url)
    resolve(store, "abc")
    server.client().flushall()
    server.client().script_flush()
    assert resolve(store, "abc", "d") == 2 and resolve(store, "abc", "d") == 0
    assert len(store) == 2


# -- a server that stops, is slow, or is full


def test_a_lost_connection_compresses_and_loses_nothing(server: Server) -> None:
    store = ZStore(server.url)
    assert resolve(store, "a", "b") == 2
    server.stop(kill=True)
    with pytest.warns(UserWarning, match="cannot be read .*Connection refused"):
        assert resolve(store, "a", "c") == 2
    with pytest.warns(UserWarning, match="cannot be read"):
        assert resolve(store, "a", "c") == 0, "what waits to be written is read"
    with pytest.warns(UserWarning, match="cannot be written"):
        store.pin("index", ["b"])
    for ask in (lambda: len(store), lambda: store.size_bytes, lambda: store.size_of(["a"])):
        with pytest.raises(ZtokError, match="cannot be read"):
            ask()
    for change in (lambda: store.delete(["a"]), lambda: store.prune("", [])):
        with pytest.raises(ZtokError, match="cannot be deleted"):
            change()
    server.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve(store, "a", "b", "c") == 0
        with ZStore(server.url) as other:
            assert resolve(other, "a", "b", "c") == 0 and len(other) == 3
            assert list(other._cache.pinned("index"))
            assert other.delete(["a"]) == 1 and resolve(store, "a") == 1


def test_what_is_deleted_while_it_waits_stays_deleted(server: Server) -> None:
    store = ZStore(server.url)
    server.stop()
    with pytest.warns(UserWarning):
        resolve(store, "a", "b")
    with pytest.raises(ZtokError, match="cannot be deleted"):
        store.delete(["a"])
    with pytest.warns(UserWarning, match="2 entries|1 entries"):
        store.close()
    server.start()
    store.close()
    assert len(store) == 1 and resolve(store, "b") == 0


def test_what_waits_takes_bounded_memory(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "PENDING_BYTES", 100)
    store = ZStore(server.url)
    server.stop()
    with pytest.warns(UserWarning, match="cannot be written"):
        for i in range(10):
            store.put_bytes("note", str(i), b"x" * 30)
    server.start()
    store.close()
    assert sorted(store.get_bytes_many("note", list("0123456789"))) == ["7", "8", "9"]


def test_opening_while_the_server_is_away(server: Server) -> None:
    copy = pickle.dumps(ZStore(server.url))
    server.stop()
    with pytest.raises(
        ZtokError, match=r"Connection refused.*start the server, or give the secret"
    ):
        ZStore(server.url)
    with pytest.warns(UserWarning, match="cannot be opened"):
        store = ZStore(server.url, secret=b"s" * 32)
    with pytest.warns(UserWarning, match="cannot be opened"):
        sent = pickle.loads(copy)
    with pytest.warns(UserWarning, match="cannot be read"):
        assert resolve(store, "a") == 1
    server.start()
    assert resolve(store, "a") == 0 and resolve(sent, "a") == 0
    assert sent.secret == ZStore(server.url).secret


def test_a_slow_server_is_waited_for(server: Server) -> None:
    store = ZStore(server.url)
    resolve(store, "a")
    server.client().client_pause(400)
    begin = time.monotonic()
    assert resolve(store, "a") == 0
    assert time.monotonic() - begin > 0.2


def test_a_server_that_hangs_is_not_waited_for_twice(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ZStore(quick(server))
    resolve(store, "a")
    monkeypatch.setattr(redis_backend, "PAUSE_SECONDS", 1.0)
    server.client().client_pause(2500)
    with pytest.warns(UserWarning, match="cannot be read .*imeout"):
        assert resolve(store, "a", "b") == 2
    begin = time.monotonic()
    with pytest.warns(UserWarning, match="cannot be read .*imeout"):
        assert resolve(store, "a", "b") == 0
    assert time.monotonic() - begin < 0.2
    time.sleep(max(0.0, 2.6 - (time.monotonic() - begin)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve(store, "a", "b") == 0
    assert ZStore(server.url).get(ANY, "b") == compressed("b")  # type: ignore[arg-type]


def test_a_full_server_keeps_what_it_has(server: Server) -> None:
    store = ZStore(server.url)
    assert resolve(store, "a") == 1
    server.client().config_set("maxmemory", "1mb")  # below what an empty server takes
    with pytest.warns(UserWarning, match="cannot be written .*maxmemory"):
        assert resolve(store, "a", "b") == 1
    assert resolve(store, "a", "b") == 0
    before = len(store)
    assert before == 1 and store.size_bytes == len(compressed("a").to_bytes())
    assert store.delete(["a"]) == 1, "room can be made"
    server.client().config_set("maxmemory", "0")
    with ZStore(server.url) as other:
        assert resolve(store, "b") == 0 and resolve(other, "b") == 0
