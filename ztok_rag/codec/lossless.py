"""`LosslessText`: a text's Z-tokens together with what gives back its every character."""

from __future__ import annotations

import bz2
import hashlib
import lzma
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from ztok_rag.codec.sequence import (
    EMPTY,
    ZSequence,
    deflate,
    is_lossless,
    join_lossless,
    read_sequence_file,
    split_lossless,
    write_atomic,
)
from ztok_rag.errors import SequenceError

_HEADER = struct.Struct("<B8s")  # coding of the text, hash of the text


class Coding(IntEnum):
    """How the text is stored."""

    TOKENS = 0
    """Token ids by LZMA, those that the Z-tokens name left out."""
    LZMA = 1
    BZ2 = 2
    DEFLATE = 3


@dataclass(frozen=True)
class LosslessText:
    """A text as Z-tokens that also gives back the exact text.

    Attributes:
        z: the Z-tokens.
        coding: how the text is stored.
        packed: the text, so stored.
        digest: hash of the text, which what is given back must have.
    """

    z: ZSequence
    coding: Coding
    packed: bytes
    digest: bytes

    @classmethod
    def pack(cls, text: str, z: ZSequence, tokenizer: Any) -> LosslessText:
        """Store a text beside its Z-tokens, in the smallest coding that gives it back.

        Args:
            text: the text.
            z: its Z-tokens.
            tokenizer: the Hugging Face tokenizer of the base that made `z`.

        Raises:
            SequenceError: the text is not Unicode, or no coding gives it back.
        """
        try:
            raw = text.encode()
        except UnicodeEncodeError as error:
            raise SequenceError(f"this text is not Unicode ({error}); repair it first.") from error
        digest = _digest(raw)
        packed = {coding: pack(raw) for coding, (pack, _) in _BYTE_CODINGS.items()}
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if max(ids, default=0) < EMPTY:
            stream = np.array(_leave_out(ids, _anchors(z)), dtype="<u2")
            packed[Coding.TOKENS] = _lzma_pack(stream.tobytes(), _TOKEN_FILTER)
        for coding in sorted(packed, key=lambda coding: len(packed[coding])):
            made = cls(z, coding, packed[coding], digest)
            try:
                if cls.from_bytes(made.to_bytes()).text(tokenizer) == text:
                    return made
            except SequenceError:
                continue
        raise SequenceError(
            "this text does not come back exactly from any coding; keep it uncompressed."
        )

    @property
    def needs_tokenizer(self) -> bool:
        """Whether `text` takes the tokenizer of the base that made the Z-tokens."""
        return self.coding is Coding.TOKENS

    def text(self, tokenizer: Any = None) -> str:
        """The exact text.

        Args:
            tokenizer: the Hugging Face tokenizer of the base that made the Z-tokens; only where
                `needs_tokenizer`.

        Raises:
            SequenceError: the tokenizer is missing or is another base's, or the file was forged.
        """
        if self.needs_tokenizer and tokenizer is None:
            raise SequenceError("this text is stored as tokens; pass the base LLM's tokenizer.")
        try:
            raw = self._unpack(tokenizer)
        except (lzma.LZMAError, zlib.error, OSError, ValueError, OverflowError) as error:
            raise SequenceError(f"the stored text cannot be unpacked ({error}).") from error
        if _digest(raw) != self.digest:
            remedy = (
                "name the checkpoint or base LLM it was compressed with"
                if self.needs_tokenizer
                else "compress the source text again"
            )
            raise SequenceError(f"the stored text does not come back as it was; {remedy}.")
        return raw.decode()

    def _unpack(self, tokenizer: Any) -> bytes:
        if not self.needs_tokenizer:
            return _BYTE_CODINGS[self.coding][1](self.packed)
        stream = np.frombuffer(_lzma_unpack(self.packed, _TOKEN_FILTER), dtype="<u2").tolist()
        ids = _put_back(stream, _anchors(self.z))
        text: str = tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text.encode()

    def to_bytes(self) -> bytes:
        """The content of the file, checksummed."""
        return join_lossless(self.z, _HEADER.pack(self.coding, self.digest) + self.packed)

    @classmethod
    def from_bytes(cls, data: bytes) -> LosslessText:
        """Inverse of `to_bytes`.

        Raises:
            SequenceError: the bytes are not of a lossless file, or are truncated or altered.
        """
        z, rest = split_lossless(data)
        if len(rest) < _HEADER.size:
            raise SequenceError("this lossless file holds no text; compress the text again.")
        coding, digest = _HEADER.unpack_from(rest)
        try:
            known = Coding(coding)
        except ValueError as error:
            raise SequenceError(
                f"this lossless file has the unknown coding {coding}; update ztok-rag."
            ) from error
        return cls(z, known, rest[_HEADER.size :], digest)

    def save(self, path: str | Path) -> None:
        """Write to `path` atomically: the file is whole or not there."""
        write_atomic(Path(path), self.to_bytes())

    @classmethod
    def load(cls, path: str | Path) -> LosslessText:
        """Read a file that `save` wrote.

        Raises:
            SequenceError: the file is missing, or is not an intact lossless file.
        """
        return read_sequence_file(path, cls.from_bytes)


def parse(data: bytes) -> ZSequence | LosslessText:
    """The content of either kind of file that `ztok compress` writes.

    Raises:
        SequenceError: it is neither, or is damaged.
    """
    return LosslessText.from_bytes(data) if is_lossless(data) else ZSequence.from_bytes(data)


def _anchors(z: ZSequence) -> list[int]:
    """The token that each Z-token names first, in reading order."""
    first = z.codes[:, 0]
    return [int(code) for code in first[first != EMPTY]]


def _leave_out(ids: Sequence[int], anchors: Sequence[int]) -> list[int]:
    """`ids` with `EMPTY` in place of each token that is the next anchor."""
    left, taken = [], 0
    for token in ids:
        named = taken < len(anchors) and token == anchors[taken]
        taken += named
        left.append(EMPTY if named else token)
    return left


def _put_back(stream: Sequence[int], anchors: Sequence[int]) -> list[int]:
    """Inverse of `_leave_out`."""
    if stream.count(EMPTY) > len(anchors):
        raise ValueError("it leaves out more tokens than there are Z-tokens")
    following = iter(anchors)
    return [next(following) if token == EMPTY else token for token in stream]


def _digest(raw: bytes) -> bytes:
    return hashlib.blake2b(raw, digest_size=8).digest()


def _lzma_filter(lc: int, lp: int, pb: int) -> dict[str, int]:
    """LZMA at its best, for units of `2 ** lp` bytes; 8 MiB of dictionary bound its memory."""
    return {
        "id": lzma.FILTER_LZMA1,
        "preset": 9 | lzma.PRESET_EXTREME,
        "dict_size": 1 << 23,
        "lc": lc,
        "lp": lp,
        "pb": pb,
    }


_TOKEN_FILTER = _lzma_filter(0, 1, 1)
_TEXT_FILTER = _lzma_filter(3, 0, 0)


def _lzma_pack(raw: bytes, settings: dict[str, int]) -> bytes:
    return lzma.compress(raw, lzma.FORMAT_RAW, filters=[settings])


def _lzma_unpack(packed: bytes, settings: dict[str, int]) -> bytes:
    return lzma.decompress(packed, lzma.FORMAT_RAW, filters=[settings])


_BYTE_CODINGS: dict[Coding, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    Coding.LZMA: (
        lambda raw: _lzma_pack(raw, _TEXT_FILTER),
        lambda packed: _lzma_unpack(packed, _TEXT_FILTER),
    ),
    Coding.BZ2: (bz2.compress, bz2.decompress),
    Coding.DEFLATE: (deflate, lambda packed: zlib.decompress(packed, wbits=-zlib.MAX_WBITS)),
}
"""Packing and unpacking of the text's UTF-8 bytes."""
