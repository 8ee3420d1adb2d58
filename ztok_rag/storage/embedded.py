"""The backend of a folder: a diskcache database with indexes of this package."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import diskcache

from ztok_rag.storage.backends import HASH_CHARACTERS, BackendError, in_parts, split_key
from ztok_rag.storage.disk import BytesCache
from ztok_rag.storage.schema import CONTENT, CONTENT_CHARACTERS, SCHEMA, SIZE, find_kinds, keys_of

_PART = 500  # values in one query; SQLite takes 999 or more
_TICK = 1e-6  # seconds between two uses, should the clock stand still or go back


class EmbeddedBackend(BytesCache):
    """A `Backend` in a folder of this machine. Processes may share it.

    With a limit, entries are evicted that were not used for longest. The time of use is kept by
    the objects that have a limit.
    """

    is_read_only = False

    def __init__(self, directory: str, limit_bytes: int | None = None) -> None:
        """Open or make the database.

        Args:
            directory: the folder.
            limit_bytes: most bytes of all values; `None` is no limit.

        Raises:
            sqlite3.Error, OSError, diskcache.Timeout: it cannot be opened or is damaged.
        """
        # Entries are small and costly to make: diskcache evicts none, and all that are small are
        # in the database. Deleted ones are overwritten, because codes name words of their text.
        super().__init__(
            directory,
            eviction_policy="none",
            disk_min_file_size=2**20,
            sqlite_secure_delete=1,
        )
        self.limit_bytes = limit_bytes
        names = f"SELECT name FROM sqlite_master WHERE name IN ({_marks(SCHEMA)})"
        if len(self._sql(names, list(SCHEMA)).fetchall()) < len(SCHEMA):
            with self.transact():
                there = {name for (name,) in self._sql(names, list(SCHEMA)).fetchall()}
                for name, statement in SCHEMA.items():
                    if name not in there:
                        self._sql(statement)

    def __len__(self) -> int:
        with _translated():
            return int(super().__len__())

    def value_bytes(self) -> int:
        with _translated():
            ((size,),) = self._sql("SELECT bytes FROM StoreBytes").fetchall()
            return int(size)

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes | ValueError]:
        with _translated():
            found: dict[str, bytes | ValueError] = {}
            for part in in_parts(keys, _PART):
                found |= self._fetch_part(part)
        if self.limit_bytes is not None and found:
            with suppress(BackendError), self._not_waiting(), self._writing():
                self._touch(found)
        return found

    def put_many(self, entries: Mapping[str, bytes], *, replace: bool = False) -> dict[str, bytes]:
        kept: dict[str, bytes] = {}
        with self._writing():
            written = []
            for key, value in entries.items():
                if replace:
                    self.set(key, value)
                elif not self.add(key, value):
                    there = self._fetch_part([key])[key]
                    if isinstance(there, bytes):
                        kept[key] = there
                        continue
                    self.set(key, value)  # what was there is damaged
                written.append(key)
            self._note_writes(written)
            self._evict()
        return kept

    def delete_many(self, keys: Sequence[str]) -> int:
        with self._writing():
            return sum(self.delete(key) for key in keys)

    def delete_contents(self, hashes: Iterable[str], *, owner: str | None = None) -> int:
        total = 0
        with self._writing():
            for part in in_parts(hashes, _PART):
                doomed = set(part) - self._pinned_by_others(part, owner)
                total += self._delete_rows(self._rows_of(doomed))
        return total

    def kinds(self) -> list[str]:
        with _translated():
            return find_kinds(lambda query, *values: self._sql(query, values).fetchall())

    def delete_kinds(self, kinds: Iterable[str]) -> int:
        select = "SELECT rowid, filename FROM Cache WHERE key >= ? AND key < ?"
        total = 0
        with self._writing():
            for kind in kinds:
                rows = self._sql(select, keys_of(kind))
                total += self._delete_rows(rows)
        return total

    def delete_others(self, keep: Collection[str]) -> int:
        with self._writing():
            self._sql(
                "CREATE TEMP TABLE IF NOT EXISTS Keep (content TEXT PRIMARY KEY) WITHOUT ROWID"
            )
            self._sql("DELETE FROM Keep")
            try:
                self._con.executemany(
                    "INSERT OR IGNORE INTO Keep VALUES (?)",
                    # Sorted, as keys are: pages of both are then written and read in order.
                    ((content,) for content in sorted(keep)),
                )
                # NOT IN looks each key of the index up in the other; nothing is read into memory.
                return self._delete_rows(
                    self._sql(
                        "SELECT rowid, filename FROM Cache INDEXED BY Cache_key_raw "
                        f"WHERE substr(key, -{HASH_CHARACTERS}) NOT IN (SELECT content FROM Keep)"
                    )
                )
            finally:
                with suppress(sqlite3.Error):
                    self._sql("DELETE FROM Keep")

    def content_bytes(self, hashes: Iterable[str]) -> int:
        total = 0
        with _translated():
            for part in in_parts(hashes, _PART):
                rows = self._rows_of(set(part), f"rowid, filename, key, {SIZE}")
                total += sum(row[3] for row in rows)
        return total

    def pin(self, owner: str, hashes: Iterable[str]) -> None:
        with self._writing():
            for part in in_parts(hashes, _PART):
                self._con.executemany(
                    "INSERT OR IGNORE INTO StorePins VALUES (?, ?)",
                    [(bytes.fromhex(content), owner) for content in part],
                )
                self._set_time(None, self._rows_of(set(part)))

    def unpin(self, owner: str, hashes: Iterable[str]) -> None:
        with self._writing():
            for part in in_parts(hashes, _PART):
                self._con.executemany(
                    "DELETE FROM StorePins WHERE content = ? AND owner = ?",
                    [(bytes.fromhex(content), owner) for content in part],
                )
                free = set(part) - self._pinned_by_others(part, "")
                rows = self._rows_of(free, "rowid, filename, key, access_time")
                # Those that were pinned have no time; to unpin others is no use of them.
                self._set_time(self._tick(), [row for row in rows if row[3] is None])

    def pinned(self, owner: str) -> Iterator[list[str]]:
        select = (
            "SELECT content FROM StorePins WHERE owner = ? AND content > ? ORDER BY content LIMIT ?"
        )
        last = b""
        while True:
            with _translated():
                rows = self._sql(select, (owner, last, _PART)).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield [content.hex() for (content,) in rows]

    def empty_log(self) -> bool:
        with _translated():
            ((busy, _, _),) = self._sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return not busy

    def end_pause(self) -> None:
        pass  # there is none

    # -- inside a transaction

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with _translated(), self._transact():
            yield

    @contextmanager
    def _not_waiting(self) -> Iterator[None]:
        """Give up in the body where another process is writing."""
        with _translated():
            self._sql("PRAGMA busy_timeout = 0")
            try:
                yield
            finally:
                self._sql(f"PRAGMA busy_timeout = {int(self.timeout * 1000)}")

    def _fetch_part(self, keys: Sequence[str]) -> dict[str, bytes | ValueError]:
        """The values of some keys; where a page or a row is damaged, each is tried by itself."""
        select = f"SELECT key, mode, filename, value FROM Cache WHERE key IN ({_marks(keys)})"
        try:
            rows = self._sql(f"{select} AND raw = 1", keys).fetchall()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "decode" not in str(error):
                raise
            if len(keys) == 1:
                return {keys[0]: ValueError(str(error))}
            return {k: v for key in keys for k, v in self._fetch_part([key]).items()}
        found: dict[str, bytes | ValueError] = {}
        for key, *stored in rows:
            try:
                found[key] = self._disk.fetch(*stored, False)
            except (ValueError, OSError) as error:
                found[key] = ValueError(str(error))
        return found

    def _rows_of(
        self, hashes: Collection[str], columns: str = "rowid, filename, key"
    ) -> list[tuple[Any, ...]]:
        """The rows of texts; the third column is the key."""
        ends = {content[-CONTENT_CHARACTERS:] for content in hashes}
        select = f"SELECT {columns} FROM Cache WHERE {CONTENT} IN ({_marks(ends)})"
        rows = self._sql(select, list(ends)).fetchall()
        return [row for row in rows if split_key(row[2])[1] in hashes]

    def _delete_rows(self, rows: Iterable[Sequence[Any]]) -> int:
        """Delete rows, which begin with row id and file name, and their files."""
        total = 0
        with self._transact() as (_, clean_up):
            for part in in_parts(rows, _PART):
                self._con.executemany(
                    "DELETE FROM Cache WHERE rowid = ?", [(row[0],) for row in part]
                )
                for row in part:
                    clean_up(row[1])
                total += len(part)
        return total

    def _pinned_by_others(self, hashes: Sequence[str], owner: str | None) -> set[str]:
        """Those of the hashes that others than `owner` have pinned; `None` gives none."""
        if owner is None or not hashes:
            return set()
        select = f"SELECT content FROM StorePins WHERE content IN ({_marks(hashes)}) AND owner != ?"
        values = [*map(bytes.fromhex, hashes), owner]
        return {content.hex() for (content,) in self._sql(select, values)}

    def _note_writes(self, keys: Sequence[str]) -> None:
        """Mark new entries of pinned texts as pinned, and others as used now."""
        for part in in_parts(keys, _PART):
            pinned = self._pinned_by_others([split_key(key)[1] for key in part], "")
            self._set_times(None, [key for key in part if split_key(key)[1] in pinned])
            if self.limit_bytes is not None:
                rest = [key for key in part if split_key(key)[1] not in pinned]
                self._set_times(self._tick(), rest)

    def _touch(self, keys: Iterable[str]) -> None:
        now = self._tick()
        for part in in_parts(keys, _PART):
            self._set_times(now, part, "AND access_time IS NOT NULL")

    def _set_times(self, now: float | None, keys: Sequence[str], condition: str = "") -> None:
        if keys:
            update = f"UPDATE Cache SET access_time = ? WHERE key IN ({_marks(keys)}) AND raw = 1"
            self._sql(f"{update} {condition}", [now, *keys])

    def _set_time(self, now: float | None, rows: Iterable[Sequence[Any]]) -> None:
        self._con.executemany(
            "UPDATE Cache SET access_time = ? WHERE rowid = ?", [(now, row[0]) for row in rows]
        )

    def _tick(self) -> float:
        """A time after that of all uses before, also where the clock was set back."""
        select = "SELECT MAX(access_time) FROM Cache WHERE access_time IS NOT NULL"
        ((last,),) = self._sql(select).fetchall()
        return max(time.time(), (last or 0.0) + _TICK)

    def _evict(self) -> None:
        """Delete entries that are not pinned, those not used for longest first, to the limit."""
        if self.limit_bytes is None:
            return
        select = (
            f"SELECT rowid, filename, {SIZE} FROM Cache WHERE access_time IS NOT NULL "
            "ORDER BY access_time, key LIMIT ?"
        )
        while (excess := self.value_bytes() - self.limit_bytes) > 0:
            rows = self._sql(select, (_PART,)).fetchall()
            if not rows:
                return
            doomed = []
            for row in rows:
                doomed.append(row)
                excess -= row[2]
                if excess <= 0:
                    break
            self._delete_rows(doomed)


@contextmanager
def _translated() -> Iterator[None]:
    """Raise what goes wrong with the database as `BackendError`."""
    try:
        yield
    except diskcache.Timeout as error:
        raise BackendError("its database is in use, or cannot be written") from error
    except (OSError, sqlite3.Error) as error:
        # SQLite may have rolled back by itself; what diskcache then says hides the cause.
        cause = error.__context__ if "no transaction is active" in str(error) else None
        raise BackendError(str(cause or error)) from error


def _marks(values: Collection[object]) -> str:
    return ", ".join("?" * len(values))
