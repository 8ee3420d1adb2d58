"""The documents and chunks of a large index, in an SQLite file that is never read as a whole.

A change is one transaction. It also records which version of the vectors belongs to it, so that
text and vectors change together.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_index.core.schema import BaseNode
from llama_index.core.storage.docstore.utils import doc_to_json, json_to_doc

from ztok_rag.errors import ZtokError
from ztok_rag.index.chunks import chunk_text
from ztok_rag.index.documents import KnownDocument, source_of
from ztok_rag.storage.backends import in_parts

CATALOG = "catalog.db"
"""Name of its file in the folder of an index."""

_PAGE_BYTES = 16384  # a chunk takes two to three thousand; several share a page
_WAIT_SECONDS = 60.0
_AT_ONCE = 500  # values in one query, and rows of one step through a table

# `source` is the file of a document, and the part of it, as JSON. `node` is LlamaIndex's JSON of a
# chunk without its vector; null where a document store of the caller's has it.
_SCHEMA = """
CREATE TABLE document (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, hash TEXT NOT NULL, source TEXT,
    metadata TEXT NOT NULL
);
CREATE INDEX document_hash ON document (hash);
CREATE INDEX document_source ON document (source) WHERE source IS NOT NULL;
CREATE TABLE chunk (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, document INTEGER NOT NULL,
    text_hash BLOB NOT NULL, node TEXT
);
CREATE INDEX chunk_document ON chunk (document);
CREATE INDEX chunk_text ON chunk (text_hash);
CREATE TABLE state (
    revision TEXT NOT NULL, documents INTEGER NOT NULL, chunks INTEGER NOT NULL,
    vectors INTEGER NOT NULL, trained INTEGER NOT NULL
);
INSERT INTO state VALUES ('', 0, 0, 0, 0);
"""


@dataclass(frozen=True)
class State:
    """What the last committed change left.

    Attributes:
        revision: random id of the change.
        documents: number of documents.
        chunks: number of chunks.
        vectors: version of the vectors; 0 where the caller keeps them.
        trained: number of vectors when their index was trained; 0 before.
    """

    revision: str
    documents: int
    chunks: int
    vectors: int
    trained: int


@dataclass(frozen=True)
class Chunk:
    """A chunk as the catalog has it.

    Attributes:
        id: of the node.
        doc_id: of its document.
        metadata: of its document.
        node: the node; `None` where a document store of the caller's has it.
    """

    id: str
    doc_id: str
    metadata: Mapping[str, Any]
    node: BaseNode | None


class Catalog:
    """An SQLite file of documents and chunks.

    Each use opens a connection of its own, so threads and forked processes share an object. A
    folder that cannot be written is only read.
    """

    def __init__(self, path: Path) -> None:
        """Set up.

        Args:
            path: of the file.
        """
        self.path = path

    @classmethod
    def make(cls, path: Path) -> Catalog:
        """A new, empty catalog in the file `path`."""
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(_SCHEMA)
        return cls(path)

    @contextmanager
    def reading(self) -> Iterator[Rows]:
        """The rows as they are now; changes made meanwhile are not seen.

        Raises:
            ZtokError: the file is missing or damaged.
        """
        with self._translated(), closing(self._connect()) as connection:
            connection.execute("BEGIN")
            yield Rows(connection)

    @contextmanager
    def writing(self) -> Iterator[Rows]:
        """A transaction, committed after the body; undone if the body raises.

        Raises:
            ZtokError: the file is damaged, in use for a minute, or cannot be written.
        """
        with self._translated(), closing(self._connect()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                rows = Rows(connection)
                yield rows
                rows.note_change()
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def empty_log(self) -> bool:
        """Move the write-ahead log into the file and cut it; false while it is in use."""
        with self._translated(), closing(self._connect()) as connection:
            ((busy, _, _),) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return not busy

    def close_up(self) -> None:
        """Leave one file without a log, so that it can be moved."""
        with self._translated(), closing(self._connect()) as connection:
            connection.execute("PRAGMA optimize")

    def document_ids(self) -> Iterator[str]:
        """Ids of the documents, in the order in which they were added."""
        for (doc_id,) in self._all("document", "id"):
            yield doc_id

    def chunk_ids(self) -> Iterator[tuple[str, str | None]]:
        """Id of every chunk, and its node as JSON if it is here."""
        yield from self._all("chunk", "id, node")

    def _all(self, table: str, columns: str) -> Iterator[tuple[Any, ...]]:
        """All rows of a table, in steps, so that no transaction lasts."""
        last = -1
        query = (
            f"SELECT number, {columns} FROM {table} WHERE number > ? ORDER BY number LIMIT "
            f"{_AT_ONCE}"
        )
        while True:
            with self.reading() as rows:
                found = rows.ask(query, last)
            yield from (row[1:] for row in found)
            if len(found) < _AT_ONCE:
                return
            last = found[-1][0]

    def _connect(self) -> sqlite3.Connection:
        if os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK):
            connection = self._open("mode=rw")
            # What is deleted is overwritten, because it holds text of documents.
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("PRAGMA synchronous = FULL")
            return connection
        try:
            return self._open("mode=ro")
        except sqlite3.OperationalError:
            return self._open("immutable=1")

    def _open(self, mode: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?{mode}", uri=True, timeout=_WAIT_SECONDS, isolation_level=None
        )
        try:
            connection.execute("SELECT revision FROM state").fetchall()
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise ZtokError(
                f"{self.path} cannot be used ({error}); see that its folder is there and has room, "
                "or build the index again from its documents."
            ) from error


class Rows:
    """The rows of a `Catalog` in one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def ask(self, query: str, *values: object) -> list[Any]:
        """The rows that a query finds."""
        return self._connection.execute(query, values).fetchall()

    def state(self) -> State:
        """What the last change left."""
        ((*values,),) = self.ask("SELECT revision, documents, chunks, vectors, trained FROM state")
        return State(*values)

    def note_change(self) -> None:
        """Give the state a new revision."""
        self._connection.execute("UPDATE state SET revision = ?", (secrets.token_hex(8),))

    def note_vectors(self, version: int, trained: int | None = None) -> None:
        """Record the version of the vectors, and how many their index was trained on."""
        self._connection.execute(
            "UPDATE state SET vectors = ?, trained = COALESCE(?, trained)", (version, trained)
        )

    # -- documents

    def has_document(self, doc_id: str) -> bool:
        """Whether a document is here."""
        return bool(self.ask("SELECT 1 FROM document WHERE id = ?", doc_id))

    def known(
        self, ids: Iterable[str], hashes: Iterable[str], sources: Iterable[tuple[str, str]]
    ) -> dict[str, KnownDocument]:
        """The documents with one of these ids, hashes or sources, in their order."""
        wanted = {
            "id": ids,
            "hash": hashes,
            "source": (json.dumps(source) for source in sources),
        }
        found: dict[int, tuple[str, KnownDocument]] = {}
        for column, values in wanted.items():
            for part in in_parts(dict.fromkeys(values), _AT_ONCE):
                for number, doc_id, own, metadata in self.ask(
                    "SELECT number, id, hash, metadata FROM document "
                    f"WHERE {column} IN ({_marks(part)})",
                    *part,
                ):
                    found[number] = (doc_id, KnownDocument(own, json.loads(metadata)))
        return dict(found[number] for number in sorted(found))

    def metadata(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Id and metadata of every document."""
        for doc_id, metadata in self._connection.execute("SELECT id, metadata FROM document"):
            yield doc_id, json.loads(metadata)

    # -- chunks

    def chunks(self, ids: Sequence[str]) -> dict[str, Chunk]:
        """The chunks with these ids, as far as they are here."""
        found = {}
        for part in in_parts(ids, _AT_ONCE):
            for chunk_id, node, doc_id, metadata in self.ask(
                "SELECT chunk.id, node, document.id, metadata FROM chunk JOIN document "
                f"ON document.number = document WHERE chunk.id IN ({_marks(part)})",
                *part,
            ):
                own = None if node is None else node_from_json(node)
                found[chunk_id] = Chunk(chunk_id, doc_id, json.loads(metadata), own)
        return found

    def chunk_ids_of(self, doc_id: str) -> list[str]:
        """Ids of the chunks of a document."""
        return [
            chunk_id
            for (chunk_id,) in self.ask(
                "SELECT chunk.id FROM document JOIN chunk ON document = document.number "
                "WHERE document.id = ? ORDER BY chunk.number",
                doc_id,
            )
        ]

    def with_texts_only_in(self, doc_ids: Sequence[str]) -> list[str]:
        """Ids of chunks of these documents, one for each text that no other document holds."""
        inside: dict[bytes, str] = {}
        held: dict[bytes, int] = {}
        for doc_id in doc_ids:
            for chunk_id, text_hash in self.ask(
                "SELECT chunk.id, text_hash FROM document JOIN chunk ON document = document.number "
                "WHERE document.id = ?",
                doc_id,
            ):
                inside[text_hash] = chunk_id
                held[text_hash] = held.get(text_hash, 0) + 1
        only = []
        for text_hash, chunk_id in inside.items():
            ((everywhere,),) = self.ask("SELECT COUNT(*) FROM chunk WHERE text_hash = ?", text_hash)
            if everywhere == held[text_hash]:
                only.append(chunk_id)
        return only

    def without(self, texts: Iterable[str]) -> list[str]:
        """Those of `texts` that no chunk has."""
        absent: list[str] = []
        for part in in_parts(texts, _AT_ONCE):
            by_hash = {_text_hash(text): text for text in part}
            for (text_hash,) in self.ask(
                f"SELECT text_hash FROM chunk WHERE text_hash IN ({_marks(by_hash)})", *by_hash
            ):
                by_hash.pop(text_hash, None)
            absent += by_hash.values()
        return absent

    # -- changes

    def remove(self, doc_ids: Iterable[str]) -> None:
        """Remove documents and their chunks."""
        for doc_id in doc_ids:
            for (number,) in self.ask("SELECT number FROM document WHERE id = ?", doc_id):
                gone = self._connection.execute("DELETE FROM chunk WHERE document = ?", (number,))
                self._connection.execute("DELETE FROM document WHERE number = ?", (number,))
                self._connection.execute(
                    "UPDATE state SET documents = documents - 1, chunks = chunks - ?",
                    (gone.rowcount,),
                )

    def add(self, nodes: Sequence[BaseNode], hashes: Mapping[str, str], *, keeps: bool) -> None:
        """Add documents with their chunks.

        Args:
            nodes: chunks of the documents.
            hashes: hash of each document, by id.
            keeps: whether the nodes are kept here; else in a document store of the caller's.

        Raises:
            ZtokError: a document or a chunk of the same id is here already.
        """
        metadata = {node.ref_doc_id: node.metadata for node in nodes}
        numbers = {}
        try:
            for doc_id, content_hash in hashes.items():
                own = metadata.get(doc_id, {})
                source = source_of(own)
                numbers[doc_id] = self._connection.execute(
                    "INSERT INTO document (id, hash, source, metadata) VALUES (?, ?, ?, ?)",
                    (
                        doc_id,
                        content_hash,
                        None if source is None else json.dumps(source),
                        json.dumps(own),
                    ),
                ).lastrowid
            self._connection.executemany(
                "INSERT INTO chunk (id, document, text_hash, node) VALUES (?, ?, ?, ?)",
                (
                    (
                        node.node_id,
                        numbers[node.ref_doc_id or ""],
                        _text_hash(chunk_text(node)),
                        node_to_json(node) if keeps else None,
                    )
                    for node in nodes
                ),
            )
        except sqlite3.IntegrityError as error:
            raise ZtokError(
                "another process has added a document of the same id meanwhile; do it again with "
                "refresh_ref_docs()."
            ) from error
        self._connection.execute(
            "UPDATE state SET documents = documents + ?, chunks = chunks + ?",
            (len(hashes), len(nodes)),
        )


def without_vector(node: BaseNode) -> BaseNode:
    """The node, or a copy of it without its vector."""
    return node if node.embedding is None else node.model_copy(update={"embedding": None})


def node_to_json(node: BaseNode) -> str:
    """A node as text, without its vector."""
    return json.dumps(doc_to_json(without_vector(node)), ensure_ascii=False)


def node_from_json(text: str) -> BaseNode:
    """The node that `node_to_json` wrote."""
    return json_to_doc(json.loads(text))


def _text_hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _marks(values: Collection[object]) -> str:
    return ", ".join("?" * len(values))
