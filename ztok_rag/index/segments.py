"""Segments: what Ray's workers have made of chunks, in Parquet files, until an index holds it.

A segment is one block of rows. Its file is named by a digest of its bytes, so one that is damaged,
cut short or under another's name does not count, and its rows are made again. A row is found by an
id that tells what it was made of, so a segment serves every later run that needs its rows.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ztok_rag.errors import ZtokError

_SUFFIX = ".parquet"
_TEMPORARY = ".part-"
_ATTEMPTS = ".attempts-"
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Row:
    """What was made of one text.

    Attributes:
        id: `row_id` of what it was made of.
        codes: its Z-tokens, as of `CompressedText.to_bytes`; `None` in a row of a vector.
        kind: name of `sentences` in a store; empty without any.
        sentences: further bytes of the text in a store.
        vector: embedding of a chunk, `[dimension]`; `None` in a row of Z-tokens.
    """

    id: bytes
    codes: bytes | None = None
    kind: str = ""
    sentences: bytes | None = None
    vector: list[float] | None = None


def row_id(*made_of: str) -> bytes:
    """16 bytes that depend on all strings and on where each ends."""
    digest = hashlib.blake2b(digest_size=16)
    for part in made_of:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.digest()


def write_segment(folder: Path, rows: Sequence[Row]) -> Path:
    """Write a block of rows; the file is whole or not there.

    Args:
        folder: of the segments, made if needed.
        rows: at least one.

    Raises:
        ZtokError: it cannot be written.
    """
    arrow, parquet = arrow_modules()
    columns = {name: [getattr(row, name) for row in rows] for name in _schema(arrow).names}
    sink = arrow.BufferOutputStream()
    parquet.write_table(
        arrow.table(columns, schema=_schema(arrow)), sink, compression="zstd", store_schema=False
    )
    data = sink.getvalue().to_pybytes()
    temporary = folder / f"{_TEMPORARY}{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            path = folder / f"{_digest(data)}{_SUFFIX}"
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _not_written(folder, error) from error
    return path


def read_segments(folder: Path) -> Iterator[list[Row]]:
    """The rows of each whole segment in a folder, one segment at a time.

    A damaged one is deleted; nothing in it is trusted.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        rows = _read(path)
        if rows is None:
            with suppress(OSError):
                path.unlink()
        else:
            yield rows


@contextmanager
def attempt(folder: Path, name: str, most: int) -> Iterator[None]:
    """Run the body, and count how often it was begun under a name without coming to its end.

    Args:
        folder: of the segments.
        name: of the work.
        most: attempts before this one after which it is given up.

    Raises:
        ZtokError: it is given up, or the folder cannot be written.
    """
    path = folder / f"{_ATTEMPTS}{_digest(name.encode())}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            begun = file.tell()
            file.write(b".")
    except OSError as error:
        raise _not_written(folder, error) from error
    if begun >= most:
        raise ZtokError(
            f"a worker was lost {begun} times at one block; give workers more memory, or a "
            "RayEngine a smaller block."
        )
    yield
    path.unlink(missing_ok=True)


def forget_attempts(folder: Path) -> None:
    """Begin counting anew."""
    for path in folder.glob(f"{_ATTEMPTS}*"):
        path.unlink(missing_ok=True)


def remove_segments(folder: Path) -> None:
    """Remove the folder. What is in use elsewhere stays, and is removed the next time."""
    shutil.rmtree(folder, ignore_errors=True)


def known_rows(folder: Path, wanted: Iterable[bytes]) -> set[bytes]:
    """Those of the ids `wanted` that are in whole segments."""
    wanted = set(wanted)
    return {row.id for rows in read_segments(folder) for row in rows} & wanted


def arrow_modules() -> tuple[Any, Any]:
    """`pyarrow` and `pyarrow.parquet`.

    Raises:
        ZtokError: the package is not installed.
    """
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ZtokError(
            "ingestion on Ray needs the package pyarrow; run `pip install ztok-rag[ray]`."
        ) from error


def _not_written(folder: Path, error: OSError) -> ZtokError:
    return ZtokError(
        f"a segment cannot be written to {folder} ({error}); make room there, or make it writable "
        "for every worker, and run again: what is done is kept."
    )


def _schema(arrow: Any) -> Any:
    return arrow.schema(
        [
            arrow.field("id", arrow.binary(), nullable=False),
            ("codes", arrow.binary()),
            ("kind", arrow.string()),
            ("sentences", arrow.binary()),
            ("vector", arrow.list_(arrow.float64())),
        ]
    )


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()


def _read(path: Path) -> list[Row] | None:
    """The rows of a segment; `None` if it is not what was written under its name."""
    arrow, parquet = arrow_modules()
    try:
        data = path.read_bytes()
        if _digest(data) != path.name.removesuffix(_SUFFIX):
            return None
        source = arrow.BufferReader(data)
        # Ray registers Arrow types that unpickle. Without a stored schema, none is made.
        if parquet.read_metadata(source).metadata:
            return None
        table = parquet.read_table(arrow.BufferReader(data))
        if table.schema.names != _schema(arrow).names:
            return None
        return [Row(**values) for values in table.to_pylist()]
    except (OSError, ValueError, TypeError, arrow.ArrowException):
        return None
