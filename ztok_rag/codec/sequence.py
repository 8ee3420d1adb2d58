"""`ZSequence`, the discrete, variable-length form of a text, and its file format."""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ztok_rag.errors import SequenceError, ZtokError

T = TypeVar("T")

EMPTY = 65535
"""Code of an unused slot: the span had fewer tokens than the checkpoint has anchors."""

LOSSLESS_MAGIC = b"ZL1\n"
"""Begins a file that holds a sequence and, after it, what gives back the exact text."""

_MAGIC = b"ZT2\n"
_HEADER = struct.Struct("<4s8sI")  # magic, fingerprint, checksum of all the rest
_JOINED_HEADER = struct.Struct("<4sII")  # magic, checksum of all the rest, sequence's bytes
_CHECKED = 8  # bytes of that header up to where its checksum begins to count


@dataclass(frozen=True, eq=False)
class ZSequence:
    """A text as Z-tokens.

    Attributes:
        codes: uint16 `[n_z, depth]`; `EMPTY` marks an unused slot.
        spans: int64 `[n_z, 2]`, half-open character offsets into the source text. Together the
            spans cover the text in order.
        windows: number of Z-tokens of each independently compressed window; sums to `n_z`.
        source_tokens: number of base-LLM tokens in the source text.
        fingerprint: 16 hex digits that identify the checkpoint whose codes these are.
    """

    codes: NDArray[np.uint16]
    spans: NDArray[np.int64]
    windows: tuple[int, ...]
    source_tokens: int
    fingerprint: str

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.dtype != np.uint16 or not len(self.codes):
            raise SequenceError("Z-token codes must be a non-empty uint16 array [n_z, depth].")
        if self.spans.shape != (len(self.codes), 2):
            raise SequenceError("Z-token spans must be an array [n_z, 2] of character offsets.")
        if sum(self.windows) != len(self.codes) or min(self.windows) < 1:
            raise SequenceError("the window lengths of a ZSequence must sum to its length.")
        if len(self.fingerprint) != 16:
            raise SequenceError("a checkpoint fingerprint has 16 hex digits.")

    def __len__(self) -> int:
        return len(self.codes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ZSequence) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    @property
    def depth(self) -> int:
        """Number of codes per Z-token."""
        return int(self.codes.shape[1])

    @property
    def rate(self) -> float:
        """Source tokens per Z-token."""
        return self.source_tokens / len(self)

    def split_windows(self) -> list[NDArray[np.uint16]]:
        """The codes of each independently compressed window, `[n, depth]` each."""
        return np.split(self.codes, np.cumsum(self.windows)[:-1])

    def parts(self, longest: int) -> list[ZSequence]:
        """Pieces of whole windows, as many in each as stay within `longest` Z-tokens."""
        groups: list[list[int]] = []
        for size in self.windows:
            if groups and sum(groups[-1]) + size <= longest:
                groups[-1].append(size)
            else:
                groups.append([size])
        if len(groups) == 1:
            return [self]
        ends = np.cumsum([sum(group) for group in groups])
        # How many source tokens a window had is not kept; characters stand in for them.
        covered = self.spans[ends - 1, 1] / self.spans[-1, 1]
        tokens = np.diff(np.rint(covered * self.source_tokens).astype(int), prepend=0)
        parts, start = [], 0
        for group, end, count in zip(groups, ends.tolist(), tokens.tolist(), strict=True):
            parts.append(
                ZSequence(
                    codes=self.codes[start:end],
                    spans=self.spans[start:end],
                    windows=tuple(group),
                    source_tokens=max(1, count),
                    fingerprint=self.fingerprint,
                )
            )
            start = end
        return parts

    def to_bytes(self) -> bytes:
        """Compact, checksummed bytes. Equal sequences give equal bytes."""
        # Codes slot by slot, low bytes apart from high bytes, compress best.
        columns = np.ascontiguousarray(self.codes.T.astype("<u2"))
        planes = columns.view(np.uint8).reshape(self.depth, -1, 2).transpose(0, 2, 1)
        starts = np.diff(self.spans[:, 0], prepend=0)
        gaps = self.spans[:, 1] - np.append(self.spans[1:, 0], self.spans[-1, 1])
        if not gaps.any():
            gaps = gaps[:0]
        counts = [self.source_tokens, len(self), self.depth, len(self.windows), len(gaps)]
        offsets = _varints([*starts.tolist(), *(-gaps).tolist(), int(self.spans[-1, 1])])
        # Learned codes are nearly random, and spoil the compression of what is not.
        learned, first = planes[1:].tobytes(), deflate(planes[:1].tobytes() + offsets)
        body = _varints([*counts, *self.windows]) + learned + first
        head = (_MAGIC, bytes.fromhex(self.fingerprint))
        return _HEADER.pack(*head, zlib.crc32(body, zlib.crc32(head[1]))) + body

    @classmethod
    def from_bytes(cls, data: bytes) -> ZSequence:
        """Inverse of `to_bytes`.

        Raises:
            SequenceError: the bytes are not a Z-token sequence, or are truncated or altered.
        """
        if len(data) < _HEADER.size or data[:4] != _MAGIC:
            raise SequenceError(
                "these bytes are not a Z-token sequence of this version; "
                "compress the source text again."
            )
        _, fingerprint, crc = _HEADER.unpack_from(data)
        body = data[_HEADER.size :]
        if zlib.crc32(body, zlib.crc32(fingerprint)) != crc:
            raise SequenceError(
                "this Z-token sequence is truncated or altered (its checksum does not match); "
                "compress the source text again."
            )
        counts, at = _parse_varints(body, 5)
        source_tokens, n_z, depth, n_windows, n_gaps = counts.tolist()
        windows, at = _parse_varints(body, n_windows, at)
        learned = body[at : at + 2 * n_z * (depth - 1)]
        rest = zlib.decompress(body[at + len(learned) :], wbits=-zlib.MAX_WBITS)
        planes = np.frombuffer(rest[: 2 * n_z] + learned, np.uint8).reshape(depth, 2, n_z)
        codes = np.ascontiguousarray(planes.transpose(0, 2, 1)).view("<u2")[..., 0].T
        numbers, _ = _parse_varints(rest, n_z + n_gaps + 1, 2 * n_z)
        starts = np.cumsum(numbers[:n_z])
        ends = np.append(starts[1:], numbers[-1])
        if n_gaps:
            ends = ends - numbers[n_z:-1]
        return cls(
            codes=np.ascontiguousarray(codes, dtype=np.uint16),
            spans=np.stack([starts, ends], axis=1),
            windows=tuple(windows.tolist()),
            source_tokens=source_tokens,
            fingerprint=fingerprint.hex(),
        )

    def save(self, path: str | Path) -> None:
        """Write to `path` atomically: the file is whole or not there."""
        write_atomic(Path(path), self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> ZSequence:
        """Read a file that `save` or `LosslessText.save` wrote.

        Raises:
            SequenceError: the file is missing, or is not an intact Z-token sequence.
        """

        def parse(data: bytes) -> ZSequence:
            return split_lossless(data)[0] if is_lossless(data) else cls.from_bytes(data)

        return read_sequence_file(path, parse)


def spans_from(starts: NDArray[np.int64], end: int) -> NDArray[np.int64]:
    """Spans `[n, 2]` that begin at `starts` and each reach to the next, the last to `end`."""
    return np.stack([starts, np.append(starts[1:], end)[: len(starts)]], axis=1)


def is_lossless(data: bytes) -> bool:
    """Whether these first bytes, or all, are of a lossless file."""
    return data.startswith(LOSSLESS_MAGIC)


def join_lossless(z: ZSequence, rest: bytes) -> bytes:
    """The content of a lossless file, checksummed: a sequence, and what follows it."""
    return join_sequence(LOSSLESS_MAGIC, z, rest)


def split_lossless(data: bytes) -> tuple[ZSequence, bytes]:
    """Inverse of `join_lossless`.

    Raises:
        SequenceError: the bytes are not of a lossless file, or are truncated or altered.
    """
    return split_sequence(
        LOSSLESS_MAGIC,
        data,
        "a lossless file of this version; make one with `ztok compress --lossless`.",
    )


def join_sequence(magic: bytes, z: ZSequence, rest: bytes) -> bytes:
    """Checksummed bytes of a sequence and what follows it."""
    sequence = z.to_bytes()
    head = _JOINED_HEADER.pack(magic, 0, len(sequence))
    checked = head[_CHECKED:] + sequence + rest
    return magic + zlib.crc32(checked).to_bytes(4, "little") + checked


def split_sequence(magic: bytes, data: bytes, kind: str) -> tuple[ZSequence, bytes]:
    """Inverse of `join_sequence`; an error says that these are not the bytes of this `kind`."""
    if not data.startswith(magic):
        raise SequenceError(f"this is not {kind}")
    if len(data) < _JOINED_HEADER.size or zlib.crc32(data[_CHECKED:]) != int.from_bytes(
        data[4:_CHECKED], "little"
    ):
        raise SequenceError(
            "this file is truncated or altered (its checksum does not match); "
            "take an intact copy, or compress the source text again."
        )
    _, _, length = _JOINED_HEADER.unpack_from(data)
    start = _JOINED_HEADER.size
    return ZSequence.from_bytes(data[start : start + length]), data[start + length :]


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


def _varints(numbers: Sequence[int]) -> bytes:
    """LEB128 bytes of non-negative integers."""
    out = bytearray()
    for number in numbers:
        while number >= 128:
            out.append(number & 127 | 128)
            number >>= 7
        out.append(number)
    return bytes(out)


def _parse_varints(data: bytes, count: int, at: int = 0) -> tuple[NDArray[np.int64], int]:
    """`count` integers from position `at`, and where they end."""
    numbers: list[int] = []
    value = shift = 0
    while len(numbers) < count:
        if at >= len(data):
            raise SequenceError("this Z-token sequence has malformed offsets; compress again.")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(value)
            value = shift = 0
    return np.array(numbers, dtype=np.int64), at
