"""What a store adds to diskcache's database: an index of hashes, a running total, and pins.

A database of before gets them when it is opened to be written, in one transaction; earlier
versions of this package read and write it as before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

CONTENT = "substr(key, -16)"
"""The last 16 digits of an entry's hash, which are indexed; all 64 would triple the index."""

CONTENT_CHARACTERS = 16

SIZE = "COALESCE(LENGTH(value), 0) + size"
"""Bytes of a row's value, in the database or in a file."""

_NEW, _OLD = (f"COALESCE(LENGTH({row}.value), 0) + {row}.size" for row in ("NEW", "OLD"))

SCHEMA = {
    "Cache_content": f"CREATE INDEX Cache_content ON Cache ({CONTENT})",
    # A pinned row has no time of access, so that it is not among those to evict.
    "Cache_evictable": "CREATE INDEX Cache_evictable ON Cache (access_time) "
    "WHERE access_time IS NOT NULL",
    "StorePins": "CREATE TABLE StorePins (content BLOB NOT NULL, owner TEXT NOT NULL, "
    "PRIMARY KEY (content, owner)) WITHOUT ROWID",
    "StorePins_owner": "CREATE INDEX StorePins_owner ON StorePins (owner)",
    "StoreBytes": f"CREATE TABLE StoreBytes AS SELECT COALESCE(SUM({SIZE}), 0) AS bytes FROM Cache",
    "StoreBytes_insert": "CREATE TRIGGER StoreBytes_insert AFTER INSERT ON Cache BEGIN "
    f"UPDATE StoreBytes SET bytes = bytes + {_NEW}; END",
    "StoreBytes_update": "CREATE TRIGGER StoreBytes_update AFTER UPDATE OF value, size ON Cache "
    f"BEGIN UPDATE StoreBytes SET bytes = bytes + ({_NEW}) - ({_OLD}); END",
    "StoreBytes_delete": "CREATE TRIGGER StoreBytes_delete AFTER DELETE ON Cache BEGIN "
    f"UPDATE StoreBytes SET bytes = bytes - ({_OLD}); END",
}
"""The statement that makes each index, table and trigger, by its name, in order."""


def keys_of(kind: str) -> tuple[str, str]:
    """The first key that entries of a kind may have, and the first one after them."""
    return f"{kind}:", f"{kind};"  # ";" follows ":"


def find_kinds(ask: Callable[..., list[Any]]) -> list[str]:
    """The kinds of entries, found from one to the next by the index of keys.

    Args:
        ask: gives the rows of a query and its values.
    """
    found = []
    after = ""
    while rows := ask("SELECT key FROM Cache WHERE key > ? ORDER BY key LIMIT 1", after):
        ((key,),) = rows
        if not isinstance(key, str):  # not written by a store; such keys come last
            break
        kind, colon, _ = key.rpartition(":")
        after = keys_of(kind)[1] if colon else key
        if colon:
            found.append(kind)
    return found
