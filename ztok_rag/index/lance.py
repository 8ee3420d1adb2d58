"""Vectors on disk: a LlamaIndex vector store over LanceDB.

The class of `llama-index-vector-stores-lancedb` is not used. It fixes the fields of metadata by the
first chunk, puts ids into SQL as they are, ignores `doc_ids` and `node_ids`, raises where nothing
is found, and does not show the versions of a table, which make changes atomic here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    VectorStoreQuery,
    VectorStoreQueryResult,
)

from ztok_rag.errors import ZtokError
from ztok_rag.forks import ForkSafeLock

_TABLE = "chunks"
_AT_ONCE = 1000  # ids in one condition
_OPEN_VERSIONS = 2  # of the table: that of the last change, and the one before
_NEVER = timedelta(days=36500)


class LanceStore(BasePydanticVectorStore):
    """Vectors by node id in a LanceDB table, searched by cosine.

    Without an index of the vectors, a search is exact and reads all of them. `optimize` makes one;
    a search then reads `nprobes` of its parts, and the true vectors of `refine_factor` times as
    many nodes as are asked for. Every change is a new version of the table, and old versions stay
    readable until `optimize`.

    Attributes:
        nprobes: parts of the index that a search reads.
        refine_factor: how many times more nodes are compared by their true vectors.
        index_from: least number of vectors that get an index.
        cache_bytes: most bytes of that index that are held in memory.
    """

    stores_text: bool = False
    is_embedding_query: bool = True
    nprobes: int = 20
    refine_factor: int = 50
    index_from: int = 20_000
    cache_bytes: int = 2**28

    _path: Path = PrivateAttr()
    _process: int = PrivateAttr(default=0)
    _connection: Any = PrivateAttr(default=None)
    _writer: Any = PrivateAttr(default=None)
    _readers: dict[int, Any] = PrivateAttr(default_factory=dict)
    _lock: ForkSafeLock = PrivateAttr(default_factory=ForkSafeLock)

    def __init__(self, path: Path, **fields: Any) -> None:
        """Open the table in the folder `path`; `make` makes one.

        Raises:
            ZtokError: LanceDB is not installed.
        """
        super().__init__(**fields)
        load_lancedb()
        self._path = path

    @classmethod
    def make(cls, path: Path, dimension: int) -> LanceStore:
        """A new, empty table of vectors with `dimension` numbers.

        Raises:
            ZtokError: LanceDB is not installed.
        """
        import pyarrow as pa

        schema = pa.schema(
            [pa.field("id", pa.string()), pa.field("vector", pa.list_(pa.float32(), dimension))]
        )
        _connect(path).create_table(_TABLE, schema=schema)
        return cls(path)

    @classmethod
    def class_name(cls) -> str:
        return "LanceStore"

    @property
    def client(self) -> Any:
        """LanceDB's connection."""
        return self._connected()

    # -- versions

    @property
    def version(self) -> int:
        """The newest version of the table."""
        return int(self._latest().version)

    def rewind(self, version: int) -> int:
        """Make the newest version hold what `version` holds: undo changes that were not committed.

        Args:
            version: the one that was committed last. If its files are gone, `purge` was killed
                before its end, and the newest version holds the same.

        Returns:
            The newest version now.
        """
        table = self._latest()
        if table.version != version and self._has(table, version):
            table.restore(version)
        return self.version

    def at(self, version: int) -> Any:
        """The table as it was at the version that was committed last, to be read."""
        with self._lock:
            connection = self._connected()
            table = self._readers.get(version)
            if table is None:
                table = connection.open_table(_TABLE)
                if table.version != version and self._has(table, version):
                    table.checkout(version)
                else:
                    table.checkout(table.version)
                self._readers[version] = table
                for old in sorted(self._readers)[:-_OPEN_VERSIONS]:
                    del self._readers[old]
            return table

    # -- changes

    def add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Append nodes that have embeddings; returns their ids."""
        import pyarrow as pa

        if not nodes:
            return []
        table = self._latest()
        ids = [node.node_id for node in nodes]
        vectors = np.array([node.get_embedding() for node in nodes], dtype=np.float32)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        table.add(pa.table([pa.array(ids), column], schema=table.schema))
        return ids

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: Any = None, **delete_kwargs: Any
    ) -> None:
        """Delete nodes by their ids.

        Raises:
            NotImplementedError: there are filters; the table has no metadata.
        """
        if filters is not None:
            raise NotImplementedError("the table has no metadata to filter by")
        for condition in _conditions(node_ids or []):
            self._latest().delete(condition)

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Raise `NotImplementedError`: the table knows nodes alone; use `delete_nodes`."""
        raise NotImplementedError("the table knows no documents; use delete_nodes()")

    def optimize(self, trained: int) -> int:
        """Join small files, drop deleted rows, and index the vectors that no index holds yet.

        The index is trained again when the table has four times the vectors it was trained on.

        Args:
            trained: number of vectors when the index was trained last; 0 before.

        Returns:
            That number now.
        """
        from lancedb.index import BTree, IvfRq, IvfSq

        table = self._latest()
        table.optimize(cleanup_older_than=_NEVER)
        rows = table.count_rows()
        if rows >= max(self.index_from, 4 * trained):
            dimension = table.schema.field("vector").type.list_size
            # RaBitQ takes an eighth of a byte per number, and needs them by the eight.
            kind = IvfRq if dimension % 8 == 0 else IvfSq
            table.create_index("id", config=BTree(), replace=True)
            table.create_index("vector", config=kind(distance_type="cosine"), replace=True)
            trained = rows
        return trained

    def purge(self) -> None:
        """Delete the files of old versions and of changes that were not committed."""
        with catch_warnings():
            simplefilter("ignore", UserWarning)  # readers elsewhere open the newest version
            self._latest().optimize(cleanup_older_than=timedelta(0), delete_unverified=True)

    # -- asking

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The nearest nodes, best first, of those in `query.node_ids` if they are given.

        Args:
            query: with an embedding.
            kwargs: `nprobes` and `refine_factor` for this query; `version` of the table, by
                default the newest; and `exact`, to leave the index out.

        Raises:
            NotImplementedError: the query has filters or `doc_ids`; the table has neither.
            TypeError: there is another argument.
        """
        nprobes = int(kwargs.pop("nprobes", self.nprobes))
        refine_factor = int(kwargs.pop("refine_factor", self.refine_factor))
        version, exact = kwargs.pop("version", None), kwargs.pop("exact", False)
        if kwargs:
            raise TypeError(f"there is no argument {next(iter(kwargs))!r}")
        if query.filters is not None or query.doc_ids is not None:
            raise NotImplementedError("the table has neither metadata nor documents")
        table = self._latest() if version is None else self.at(version)
        conditions: list[str | None] = [None]
        if query.node_ids is not None:
            conditions = [*_conditions(query.node_ids)]
        found: list[tuple[float, str]] = []
        for condition in conditions:
            search = (
                table.search(query.query_embedding, vector_column_name="vector")
                .distance_type("cosine")
                .nprobes(nprobes)
                .refine_factor(refine_factor)
                .limit(query.similarity_top_k)
                .select(["id", "_distance"])
            )
            if exact:
                search = search.bypass_vector_index()
            if condition is not None:
                search = search.where(condition)
            rows = search.to_arrow()
            found += zip(rows["_distance"].to_pylist(), rows["id"].to_pylist(), strict=True)
        best = sorted(found)[: query.similarity_top_k]
        return VectorStoreQueryResult(
            ids=[node_id for _, node_id in best],
            similarities=[1.0 - distance for distance, _ in best],
        )

    @staticmethod
    def _has(table: Any, version: int) -> bool:
        return any(held["version"] == version for held in table.list_versions())

    def _latest(self) -> Any:
        """The table at its newest version, to be changed."""
        with self._lock:
            connection = self._connected()
            if self._writer is None:
                self._writer = connection.open_table(_TABLE)
            self._writer.checkout_latest()
            return self._writer

    def _connected(self) -> Any:
        """LanceDB's connection.

        Raises:
            ZtokError: this process was forked from one that uses LanceDB.
        """
        with self._lock:
            if self._connection is None or self._process != os.getpid():
                # By default it would hold up to six gigabytes.
                session = load_lancedb().Session(
                    index_cache_size_bytes=self.cache_bytes,
                    metadata_cache_size_bytes=self.cache_bytes // 4,
                )
                self._connection = _connect(self._path, session=session)
                self._process, self._writer, self._readers = os.getpid(), None, {}
            return self._connection


_processes: set[int] = set()  # in which LanceDB was used; a forked one has that of its parent


def _connect(path: Path, **options: Any) -> Any:
    """LanceDB's connection to a folder.

    LanceDB's threads are not forked along, and a forked process that uses it may crash.

    Raises:
        ZtokError: LanceDB is not installed, or was used before this process was forked.
    """
    if _processes and os.getpid() not in _processes:
        raise ZtokError(
            "LanceDB was used before this process was forked, and cannot be used here; load an "
            'index that is on disk in each worker alone, or start workers by "spawn".'
        )
    connection = load_lancedb().connect(str(path), **options)
    _processes.add(os.getpid())
    return connection


def load_lancedb() -> ModuleType:
    """The module `lancedb`.

    Raises:
        ZtokError: it is not installed.
    """
    try:
        import lancedb
    except ImportError as error:
        raise ZtokError(
            f"vectors in LanceDB need a package that is not installed ({error.name}); run "
            "`pip install ztok-rag[lance]`."
        ) from error
    module: ModuleType = lancedb
    return module


def _conditions(ids: Sequence[str]) -> Iterator[str]:
    """Conditions that together hold for these ids."""
    for start in range(0, len(ids), _AT_ONCE):
        quoted = (node_id.replace("'", "''") for node_id in ids[start : start + _AT_ONCE])
        yield "id IN ({})".format(", ".join(f"'{node_id}'" for node_id in quoted))
