"""The backend of a Redis server, which machines share."""

from __future__ import annotations

import os
import secrets
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from ztok_rag.errors import ZtokError
from ztok_rag.forks import ForkSafeLock
from ztok_rag.storage import redis_scripts as scripts
from ztok_rag.storage.backends import AccessError, BackendError, in_parts, split_key
from ztok_rag.storage.handle import SECRET_BYTES
from ztok_rag.storage.url import StoreUrl

T = TypeVar("T")

CONNECT_SECONDS = 3.0
"""Longest wait for a connection, unless the URL has `socket_connect_timeout`."""

ANSWER_SECONDS = 5.0
"""Longest wait for an answer, unless the URL has `socket_timeout`."""

RETRIES = 2
"""Times that a command is sent again over a new connection; each is harmless to repeat."""

PAUSE_SECONDS = 2.0
"""A server that did not answer is not asked again for so long, and texts are compressed at once."""

FORMAT = b"1"
_PART = 500  # keys in one command
_PART_BYTES = 2**20  # of values in one command


class RedisBackend:
    """A `Backend` in a Redis database. Threads and forked processes may share an object.

    With a limit, entries are evicted that were not used for longest. The order of uses is kept by
    the objects that have a limit.
    """

    is_read_only = False

    def __init__(self, url: StoreUrl, limit_bytes: int | None = None) -> None:
        """Set up; nothing is connected yet.

        Args:
            url: of the database.
            limit_bytes: most bytes of all values; `None` is no limit.

        Raises:
            ZtokError: the package redis is not installed, or refuses an option of the URL.
        """
        self.url = url
        self.limit_bytes = limit_bytes
        self._redis = _redis_package()
        self._lock = ForkSafeLock()
        self._process = 0  # a connection is of no use after a fork
        self._made: Any = None
        self._scripts: dict[str, Any] = {}
        self._asked_again_at = 0.0
        self._failure = ""
        try:
            self._client()
        except (ValueError, TypeError) as error:
            cause = url.hide(str(error))
            raise ZtokError(f"the URL of the store {url.name} is refused ({cause}).") from None

    # -- opening

    def open(self) -> None:
        """Check that the database answers, and is of this format.

        Raises:
            BackendError: it does not answer, or refuses the password.
            ZtokError: the database is of another version.
        """
        key = self._name("format")
        self._ask(lambda client: client.set(key, FORMAT, nx=True))
        found = self._ask(lambda client: client.get(key))
        if found != FORMAT:
            raise ZtokError(
                f"the store {self.url.name} was made by another version of ztok-rag; give its URL "
                "another ?prefix=NAME."
            )
        with suppress(BackendError):  # whoever may not ask is not warned
            memory = self._ask(lambda client: client.info("memory"))
            policy = str(memory.get("maxmemory_policy", "noeviction"))
            if policy != "noeviction":
                warnings.warn(
                    f"the Redis server of the store {self.url.name} may evict Z-tokens and the "
                    f"secret of handles (maxmemory-policy {policy}); set maxmemory-policy to "
                    "noeviction, and give ZStore a size_limit.",
                    stacklevel=4,
                )

    def secret(self) -> bytes:
        """The secret in the database, which the first to ask makes.

        Raises:
            BackendError: the database does not answer.
            ZtokError: the secret is damaged.
        """
        name, made = self._name("secret"), secrets.token_bytes(SECRET_BYTES)
        self._ask(lambda client: client.set(name, made, nx=True))
        found = self._ask(lambda client: client.get(name))
        if not isinstance(found, bytes) or len(found) != SECRET_BYTES:
            raise ZtokError(
                f"the secret in the store {self.url.name} is damaged; delete its key "
                f"{name.decode()!r}, or give one by secret=… or ZTOK_SECRET_FILE."
            )
        return found

    # -- entries

    def __len__(self) -> int:
        def count(client: Any) -> int:
            kinds = client.smembers(self._name("kinds"))
            with client.pipeline(transaction=False) as pipeline:
                for kind in kinds:
                    pipeline.zcard(self._name("kind", kind))
                return sum(pipeline.execute())

        return self._ask(count)

    def value_bytes(self) -> int:
        return int(self._ask(lambda client: client.get(self._name("bytes"))) or 0)

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes | ValueError]:
        found: dict[str, bytes | ValueError] = {}
        for part in in_parts(keys, _PART):
            places = [_place(key) for key in part]

            def read(client: Any, places: list[tuple[bytes, bytes]] = places) -> list[Any]:
                with client.pipeline(transaction=False) as pipeline:
                    for content, kind in places:
                        pipeline.hget(self._name("text", content), kind)
                    values: list[Any] = pipeline.execute()
                    return values

            values = self._ask(read, may_pause=True)
            found |= {k: v for k, v in zip(part, values, strict=True) if v is not None}
        if self.limit_bytes is not None and found:
            with suppress(BackendError):
                self._run_in_parts(scripts.TOUCH, (), [_place(key) for key in found])
        return found

    def put_many(self, entries: Mapping[str, bytes], *, replace: bool = False) -> dict[str, bytes]:
        kept: dict[str, bytes] = {}
        limit = -1 if self.limit_bytes is None else self.limit_bytes
        for part in _parts_by_size(entries):
            values = [item for key in part for item in (*_place(key), entries[key])]
            there = self._run(scripts.PUT, int(replace), limit, *values, may_pause=True)
            kept |= {key: old for key, old in zip(part, there, strict=True) if old is not None}
        return kept

    def delete_many(self, keys: Sequence[str]) -> int:
        return self._run_in_parts(scripts.DELETE, (), [_place(key) for key in keys])

    def delete_contents(self, hashes: Iterable[str], *, owner: str | None = None) -> int:
        first = (int(owner is not None), owner or "")
        return self._run_in_parts(scripts.DELETE_TEXTS, first, _contents(hashes))

    def kinds(self) -> list[str]:
        found = self._ask(lambda client: client.smembers(self._name("kinds")))
        return sorted(kind.decode() for kind in found)

    def delete_kinds(self, kinds: Iterable[str]) -> int:
        return sum(self._delete_of_kind(kind, lambda content: True) for kind in kinds)

    def delete_others(self, keep: Collection[str]) -> int:
        kept = {bytes.fromhex(content) for content in keep}
        return sum(
            self._delete_of_kind(kind, lambda content: content not in kept) for kind in self.kinds()
        )

    def content_bytes(self, hashes: Iterable[str]) -> int:
        return self._run_in_parts(scripts.BYTES, (), _contents(hashes))

    # -- pins

    def pin(self, owner: str, hashes: Iterable[str]) -> None:
        self._run_in_parts(scripts.PIN, (owner,), _contents(hashes))

    def unpin(self, owner: str, hashes: Iterable[str]) -> None:
        self._run_in_parts(scripts.UNPIN, (owner,), _contents(hashes))

    def pinned(self, owner: str) -> Iterator[list[str]]:
        for page in self._pages("sscan", self._name("pins", owner.encode())):
            yield [content.hex() for content in page]

    # -- connections

    def empty_log(self) -> bool:
        return True  # Redis rewrites its file by itself; see SECURITY.md

    def end_pause(self) -> None:
        self._asked_again_at = 0.0

    def close(self) -> None:
        with self._lock:
            if self._made is not None and self._process == os.getpid():
                self._made.close()

    def _client(self) -> Any:
        """The client of this process."""
        with self._lock:
            if self._made is None or self._process != os.getpid():
                self._made = self._connect()
                self._process = os.getpid()
                self._scripts = {}
            return self._made

    def _connect(self) -> Any:
        from redis.backoff import ExponentialBackoff
        from redis.retry import Retry

        options: dict[str, Any] = {
            "socket_connect_timeout": CONNECT_SECONDS,
            "socket_timeout": ANSWER_SECONDS,
            "retry": Retry(ExponentialBackoff(cap=0.5, base=0.05), RETRIES),
        }
        # Not the default of all versions of the package.
        if self.url.text.startswith("rediss:") and "ssl_cert_reqs" not in self.url.options:
            options |= {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
        return self._redis.Redis.from_url(self.url.for_client, **options)

    def _ask(self, ask: Callable[[Any], T], *, may_pause: bool = False) -> T:
        """What the server answers.

        Args:
            ask: is given the client; may be called again.
            may_pause: do not ask where the server did not answer shortly before.

        Raises:
            AccessError: it refuses the password.
            BackendError: it does not answer, or refuses.
        """
        if may_pause and time.monotonic() < self._asked_again_at:
            raise BackendError(self._failure)
        errors = self._redis.exceptions
        try:
            answer = ask(self._client())
        except errors.RedisError as error:
            cause = self.url.hide(str(error)) or type(error).__name__
            refused = (errors.AuthenticationError, errors.AuthorizationError)
            if isinstance(error, (*refused, errors.NoPermissionError)):
                raise AccessError(cause) from None
            if isinstance(error, errors.ConnectionError | errors.TimeoutError):
                self._failure = cause
                self._asked_again_at = time.monotonic() + PAUSE_SECONDS
            # The error of the package may hold the URL's parts, so it is not chained.
            raise BackendError(cause) from None
        self._asked_again_at = 0.0
        return answer

    def _run(self, script: str, *arguments: Any, may_pause: bool = False) -> Any:
        def run(client: Any) -> Any:
            registered = self._scripts.get(script)
            if registered is None:
                registered = self._scripts[script] = client.register_script(script)
            return registered(keys=[self.url.prefix], args=arguments, client=client)

        return self._ask(run, may_pause=may_pause)

    def _run_in_parts(
        self, script: str, first: Sequence[Any], items: Iterable[tuple[bytes, ...]]
    ) -> int:
        """Run a script on items, a part at a time; the sum of what it returns."""
        total = 0
        for part in in_parts(items, _PART):
            total += self._run(script, *first, *(value for item in part for value in item)) or 0
        return total

    def _delete_of_kind(self, kind: str, doomed: Callable[[bytes], bool]) -> int:
        name = kind.encode()
        total = 0
        for page in self._pages("zscan", self._name("kind", name)):
            gone = [(content, name) for content, _ in page if doomed(content)]
            total += self._run_in_parts(scripts.DELETE, (), gone)
        return total

    def _pages(self, command: str, name: bytes) -> Iterator[list[Any]]:
        """The members of a set, a page at a time; each at least once."""
        cursor = 0
        while True:

            def scan(client: Any, cursor: int = cursor) -> Any:
                return getattr(client, command)(name, cursor=cursor, count=_PART)

            cursor, page = self._ask(scan)
            if page:
                yield list(page)
            if not cursor:
                return

    def _name(self, *parts: str | bytes) -> bytes:
        """The name of a key."""
        return b":".join(
            part if isinstance(part, bytes) else part.encode() for part in (self.url.prefix, *parts)
        )


def _place(key: str) -> tuple[bytes, bytes]:
    """Hash and kind of a key, as they are kept."""
    kind, content = split_key(key)
    return bytes.fromhex(content), kind.encode()


def _contents(hashes: Iterable[str]) -> Iterator[tuple[bytes]]:
    return ((bytes.fromhex(content),) for content in hashes)


def _parts_by_size(entries: Mapping[str, bytes]) -> Iterator[list[str]]:
    """The keys in parts of which each is written by one command."""
    part: list[str] = []
    size = 0
    for key, value in entries.items():
        if part and (len(part) == _PART or size + len(value) > _PART_BYTES):
            yield part
            part, size = [], 0
        part.append(key)
        size += len(value)
    if part:
        yield part


def _redis_package() -> Any:
    try:
        import redis
    except ImportError as error:
        raise ZtokError(
            "a store in Redis needs the package redis; run `pip install 'ztok-rag[redis]'`."
        ) from error
    return redis
