"""Bytes on disk: checksummed containers, small integers, files that are whole or not there."""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ztok_rag.errors import SequenceError, ZtokError

T = TypeVar("T")

VARINT_BYTES = 6
"""Most bytes of an integer: 42 bits, so that sums of millions of them are 64-bit integers."""

_HEADER = struct.Struct("<4s8sI")  # magic, fingerprint, checksum of all but the magic and itself


def seal(magic: bytes, fingerprint: str, body: bytes) -> bytes:
    own = bytes.fromhex(fingerprint)
    return _HEADER.pack(magic, own, zlib.crc32(body, zlib.crc32(own))) + body


def unseal(magic: bytes, data: bytes) -> tuple[str, bytes]:
    """Fingerprint and body of sealed bytes, checked."""
    if len(data) < _HEADER.size or data[:4] != magic:
        if data[:2] == b"ZT" or data[:2] == b"ZL":
            raise SequenceError(
                "this Z-token sequence has the format of another version; "
                "compress the source text again."
            )
        raise SequenceError(
            "these bytes are not a Z-token sequence; give a file of `ztok compress`."
        )
    _, fingerprint, crc = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    if zlib.crc32(body, zlib.crc32(fingerprint)) != crc:
        raise SequenceError(
            "this Z-token sequence is truncated or altered (its checksum does not match); "
            "compress the source text again."
        )
    return fingerprint.hex(), body


def read_sequence_file(path: str | Path, parse: Callable[[bytes], T]) -> T:
    """What `parse` makes of a file's bytes; its errors name the file.

    Raises:
        SequenceError: the file cannot be read, or `parse` raised it.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise SequenceError(f"cannot read {path}: {error.strerror}.") from error
    try:
        return parse(data)
    except SequenceError as error:
        raise SequenceError(f"{path}: {error}") from error


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` by way of a temporary file in the same folder.

    Raises:
        ZtokError: it cannot be written there.
    """
    try:
        if path.exists() and not path.is_file():
            kind = "is a folder" if path.is_dir() else "is not a regular file"
            raise ZtokError(f"cannot write {path}: it {kind}; name a file.")
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        cause = "its folder is a file" if isinstance(error, FileExistsError) else error.strerror
        raise ZtokError(
            f"cannot write {path}: {cause}; name a file in a folder that can be written, "
            "with room on its disk."
        ) from error


def deflate(data: bytes) -> bytes:
    """zlib's compression without its own header and checksum."""
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def inflate(data: bytes, most: int) -> bytes:
    """Inverse of `deflate`.

    Args:
        data: what `deflate` returned.
        most: bytes that come out at most; a few bytes can stand for very many.

    Raises:
        SequenceError: the data are damaged, or more comes out.
    """
    unpacker = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    try:
        found = unpacker.decompress(data, most)
    except zlib.error as error:
        raise damaged() from error
    if not unpacker.eof:
        raise damaged()
    return found


def damaged() -> SequenceError:
    """The error of bytes that no sequence gave."""
    return SequenceError("this Z-token sequence is damaged; compress the source text again.")


def varints(numbers: Sequence[int]) -> bytes:
    """LEB128 bytes of non-negative integers."""
    out = bytearray()
    for number in numbers:
        while number >= 128:
            out.append(number & 127 | 128)
            number >>= 7
        out.append(number)
    return bytes(out)


def parse_varints(data: bytes, count: int, at: int = 0) -> tuple[NDArray[np.int64], int]:
    """`count` integers from position `at`, and where they end.

    Raises:
        SequenceError: there are fewer, or one has more than `VARINT_BYTES` bytes.
    """
    numbers: list[int] = []
    value = shift = 0
    while len(numbers) < count:
        if at >= len(data):
            raise SequenceError("this Z-token sequence has malformed offsets; compress again.")
        if shift >= 7 * VARINT_BYTES:
            raise damaged()
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(value)
            value = shift = 0
    return np.array(numbers, dtype=np.int64), at
