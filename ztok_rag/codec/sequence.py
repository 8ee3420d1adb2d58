"""`ZSequence`, a text at one rate, `CompressedText`, a text for every rate, and their bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ztok_rag.codec.allocation import allocate, choose_held, count_z_tokens
from ztok_rag.codec.packer import EMPTY
from ztok_rag.codec.token_code import TokenCode
from ztok_rag.errors import SequenceError, ZtokError

T = TypeVar("T")
IntArray = NDArray[np.int64]

LEVELS = 7
"""Steps in which a token's surprisal is kept; the first is of tokens that the base predicts."""

_SEQUENCE_MAGIC = b"ZT3\n"
_TEXT_VERSION = b"\x03"
_HEADER = struct.Struct("<4s8sI")  # magic, fingerprint, checksum of all but the magic and itself
_DIGEST_BYTES = 8
_EDGES = np.array([1.0, 2.0, 3.5, 5.5, 8.0])  # nats, between the levels above the first
_NATS = np.array([0.25, 0.6, 1.5, 2.7, 4.4, 6.6, 10.0])  # that each level stands for
_FLOOR = 0.35  # of the mean weight, added to every token's


def text_digest(text: str) -> bytes:
    """8 bytes that tell whether a text came back as it was."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=_DIGEST_BYTES).digest()


def levels_of(nats: NDArray[np.float64], predicted: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Surprisal `[n]` in `LEVELS` steps; tokens that the base predicts are in the first."""
    steps = 1 + np.searchsorted(_EDGES, nats, side="right")
    levels: NDArray[np.uint8] = np.where(predicted, 0, steps).astype(np.uint8)
    return levels


def weights_of(levels: NDArray[np.uint8], rarity: NDArray[np.float32]) -> NDArray[np.float64]:
    """Weights of tokens: the root of their surprisal, times how rare they are.

    Args:
        levels: `[n]` of `levels_of`.
        rarity: `[n]` nats that each token takes whatever stands before it.
    """
    weights: NDArray[np.float64] = np.sqrt(_NATS[levels] + 0.05) * rarity
    return weights


@dataclass(frozen=True, eq=False)
class ZSequence:
    """A text, or parts of one, as Z-tokens.

    Attributes:
        codes: int32 `[n_z, slots]` ids of the tokens that each Z-token holds, in order; `EMPTY`
            in free slots, which come last.
        places: `[n]` of each token that is held, its place among the source tokens; rising.
        spans: `[n_z, 2]` half-open character offsets into the source text, in order.
        source_tokens: number of base-LLM tokens in the source text.
        fingerprint: 16 hex digits that identify whose codes these are.
        digest: `text_digest` of the source text; empty where parts of it were left out by choice.
        code: the entropy code of the token ids.
    """

    codes: NDArray[np.int32]
    places: IntArray
    spans: IntArray
    source_tokens: int
    fingerprint: str
    digest: bytes = b""
    code: TokenCode = field(repr=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.dtype != np.int32 or not len(self.codes):
            raise SequenceError("Z-token codes must be a non-empty int32 array [n_z, slots].")
        if self.spans.shape != (len(self.codes), 2):
            raise SequenceError("Z-token spans must be an array [n_z, 2] of character offsets.")
        if len(self.places) != int(self.sizes.sum()) or not self.sizes.min():
            raise SequenceError("a Z-token holds at least one token, and each has a place.")
        if len(self.fingerprint) != 16:
            raise SequenceError("a fingerprint has 16 hex digits.")

    def __len__(self) -> int:
        return len(self.codes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ZSequence) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    @property
    def slots(self) -> int:
        """Most tokens that a Z-token holds."""
        return int(self.codes.shape[1])

    @property
    def sizes(self) -> IntArray:
        """`[n_z]` tokens that each Z-token holds."""
        counts: IntArray = np.asarray((self.codes != EMPTY).sum(axis=1), np.int64)
        return counts

    @property
    def ids(self) -> IntArray:
        """`[n]` the tokens that are held, in order."""
        ids: IntArray = self.codes[self.codes != EMPTY].astype(np.int64)
        return ids

    @property
    def rate(self) -> float:
        """Source tokens per Z-token."""
        return self.source_tokens / len(self)

    @property
    def holds_all(self) -> bool:
        """Whether every source token is held, so that the text can come back exactly."""
        return len(self.places) == self.source_tokens

    def part(self, start: int, end: int) -> ZSequence:
        """The Z-tokens from `start` to before `end`, as a text of their own."""
        edges = np.cumsum([0, *self.sizes])
        first = 0 if start == 0 else int(self.places[edges[start]])
        last = self.source_tokens if end >= len(self) else int(self.places[edges[end]])
        return dataclasses.replace(
            self,
            codes=self.codes[start:end],
            places=self.places[edges[start] : edges[min(end, len(self))]] - first,
            spans=self.spans[start:end],
            source_tokens=last - first,
            digest=b"",
        )

    def parts(self, longest: int) -> list[ZSequence]:
        """Pieces of at most `longest` Z-tokens each, in order."""
        if len(self) <= longest:
            return [self]
        return [self.part(at, at + longest) for at in range(0, len(self), longest)]

    def at(self, rate: float) -> ZSequence:
        """The tokens that are held, at another rate; nothing that was left out comes back."""
        return self.view(np.arange(len(self.places)), rate)

    def view(self, held: IntArray, rate: float) -> ZSequence:
        """Some of the tokens that are held, at another rate.

        Tokens that share a Z-token with few others go on doing so.

        Args:
            held: rising indices into the tokens that are held.
            rate: of these tokens per Z-token, at least 1.
        """
        sizes, slots = self.sizes, self.slots
        owner = np.repeat(np.arange(len(self)), sizes)
        count = count_z_tokens(len(held), rate, slots)
        weights = 1.0 / sizes[owner]
        whole = len(held) == len(self.places)
        first = int(self.spans[0, 0] if whole else self._starts(owner, held[:1])[0])
        last = int(held[-1]) + 1
        end = int(self.spans[-1, 1])
        if last < len(self.places):
            end = int(self._starts(owner, np.array([last]))[0])
        if len(held) > count * slots:
            known = np.zeros(len(held), bool)
            held = held[choose_held(weights[held], known, count * slots)]
        spans = allocate(weights[held], count, slots)
        return dataclasses.replace(
            self,
            codes=pack_codes(self.ids[held], spans, slots),
            places=self.places[held],
            spans=_spans(self._starts(owner, held), spans, first, end),
            digest=self.digest if whole else b"",
        )

    def _starts(self, owner: IntArray, held: IntArray) -> IntArray:
        """About where tokens begin in the text: a Z-token's characters are shared out evenly."""
        sizes, own = self.sizes, owner[held]
        inside = held - (np.cumsum(sizes) - sizes)[own]
        lengths = self.spans[:, 1] - self.spans[:, 0]
        starts: IntArray = self.spans[own, 0] + lengths[own] * inside // sizes[own]
        return starts

    def to_bytes(self) -> bytes:
        """Compact, checksummed bytes. Equal sequences give equal bytes."""
        whole = self.holds_all and int(self.places[-1]) == self.source_tokens - 1
        starts = np.diff(self.spans[:, 0], prepend=0)
        lengths = self.spans[:, 1] - self.spans[:, 0]
        steps = np.diff(self.places, prepend=-1) - 1
        numbers = [*self.sizes.tolist(), *starts.tolist(), *lengths.tolist()]
        if not whole:
            numbers += steps.tolist()
        counts = [self.source_tokens, len(self), self.slots, len(self.places), int(whole)]
        packed = deflate(_varints(numbers))
        body = _varints([*counts, len(self.digest), len(packed)]) + self.digest + packed
        return _seal(_SEQUENCE_MAGIC, self.fingerprint, body + self.code.encode(self.ids))

    @classmethod
    def from_bytes(cls, data: bytes, code: TokenCode) -> ZSequence:
        """Inverse of `to_bytes`.

        Args:
            data: the bytes.
            code: the entropy code of the checkpoint that made them.

        Raises:
            SequenceError: the bytes are not a Z-token sequence, or are truncated or altered.
        """
        fingerprint, body = _unseal(_SEQUENCE_MAGIC, data)
        counts, at = _parse_varints(body, 7)
        source_tokens, n_z, slots, held, whole, digest_bytes, packed = counts.tolist()
        digest, at = body[at : at + digest_bytes], at + digest_bytes
        raw = inflate(body[at : at + packed])
        numbers, _ = _parse_varints(raw, 3 * n_z + (0 if whole else held))
        sizes, starts, lengths, steps = np.split(numbers, [n_z, 2 * n_z, 3 * n_z])
        starts = np.cumsum(starts)
        ids, _ = code.decode(body[at + packed :], held)
        if int(sizes.sum()) != held or (held and int(sizes.max()) > slots):
            raise SequenceError("this Z-token sequence is inconsistent; compress the text again.")
        return cls(
            codes=pack_codes(ids, np.repeat(np.arange(n_z), sizes), slots),
            places=np.arange(held) if whole else np.cumsum(steps + 1) - 1,
            spans=np.stack([starts, starts + lengths], axis=1),
            source_tokens=source_tokens,
            fingerprint=fingerprint,
            digest=digest,
            code=code,
        )

    def save(self, path: str | Path) -> None:
        """Write to `path` atomically: the file is whole or not there."""
        write_atomic(Path(path), self.to_bytes())

    @classmethod
    def load(cls, path: str | Path, code: TokenCode) -> ZSequence:
        """Read a file that `save` wrote.

        Raises:
            SequenceError: the file is missing, or is not an intact Z-token sequence.
        """
        return read_sequence_file(path, lambda data: cls.from_bytes(data, code))


@dataclass(frozen=True, eq=False)
class CompressedText:
    """A text compressed once, for every rate: its tokens, and how much each weighs.

    Attributes:
        ids: `[n]` its token ids.
        levels: uint8 `[n]` how surprising each token is (`levels_of`).
        starts: `[n]` first character of each token.
        characters: length of the text.
        fingerprint: 16 hex digits that identify whose codes these are.
        digest: `text_digest` of the text.
        code: the entropy code of ids and levels.
    """

    ids: IntArray
    levels: NDArray[np.uint8]
    starts: IntArray
    characters: int
    fingerprint: str
    digest: bytes
    code: TokenCode = field(repr=False, kw_only=True)

    def __len__(self) -> int:
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CompressedText) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    @property
    def weights(self) -> NDArray[np.float64]:
        """`[n]` what the Z-tokens share out: a token's weight, plus a part of the mean."""
        weights = weights_of(self.levels, self.code.rarity[self.ids])
        raised: NDArray[np.float64] = weights + _FLOOR * weights.mean()
        return raised

    @property
    def predicted(self) -> NDArray[np.bool_]:
        """`[n]` whether the base LLM predicts the token with a margin."""
        predicted: NDArray[np.bool_] = self.levels == 0
        return predicted

    def at(self, rate: float, slots: int) -> ZSequence:
        """The text at a rate.

        Args:
            rate: source tokens per Z-token, at least 1.
            slots: most tokens that a Z-token holds.
        """
        return self.view(np.arange(len(self)), rate, slots)

    def view(self, tokens: IntArray, rate: float, slots: int) -> ZSequence:
        """Some of the tokens, in order, at a rate; spans reach over what lies between."""
        count = count_z_tokens(len(tokens), rate, slots)
        weights, held = self.weights[tokens], tokens
        if len(tokens) > count * slots:
            kept = choose_held(weights, self.predicted[tokens], count * slots)
            weights, held = weights[kept], tokens[kept]
        spans = allocate(weights, count, slots)
        whole = len(tokens) == len(self)
        first = 0 if whole else int(self.starts[tokens[0]])
        last = int(tokens[-1]) + 1
        end = int(self.starts[last]) if last < len(self) else self.characters
        return ZSequence(
            codes=pack_codes(self.ids[held], spans, slots),
            places=held,
            spans=_spans(self.starts[held], spans, first, end),
            source_tokens=len(self),
            fingerprint=self.fingerprint,
            digest=self.digest if whole else b"",
            code=self.code,
        )

    def to_bytes(self) -> bytes:
        """Compact, checksummed bytes of ids and levels; what the text tells is left to the text."""
        body = _varints([len(self)]) + self.code.encode(self.ids, self.levels)
        return _TEXT_VERSION + self._checksum(body) + body

    @classmethod
    def from_bytes(cls, data: bytes, tokens: CompressedText) -> CompressedText:
        """Inverse of `to_bytes`.

        Args:
            data: the bytes.
            tokens: the same text as the checkpoint's tokens (`ZCompressor.tokenize`).

        Raises:
            SequenceError: the bytes are not a compressed text, are truncated or altered, or are of
                another text or checkpoint.
        """
        checksum, body = data[1:5], data[5:]
        if data[:1] != _TEXT_VERSION or tokens._checksum(body) != checksum:
            raise SequenceError(
                "this entry is damaged, or of another text, checkpoint or version; "
                "compress the text again."
            )
        counts, at = _parse_varints(body, 1)
        ids, levels = tokens.code.decode(body[at:], int(counts[0]), with_levels=True)
        return dataclasses.replace(tokens, ids=ids, levels=levels)

    def _checksum(self, body: bytes) -> bytes:
        """4 bytes that depend on text and checkpoint, too."""
        known = bytes.fromhex(self.fingerprint) + self.digest
        return zlib.crc32(body, zlib.crc32(known)).to_bytes(4, "little")


def stored_length(data: bytes) -> int:
    """Source tokens of the text whose `CompressedText.to_bytes` this is, unchecked.

    Raises:
        SequenceError: the bytes are not a compressed text.
    """
    if data[:1] != _TEXT_VERSION:
        raise SequenceError("this entry is damaged or of another version; compress the text again.")
    return int(_parse_varints(data[5:], 1)[0][0])


def pack_codes(ids: IntArray, spans: IntArray, slots: int) -> NDArray[np.int32]:
    """Codes `[n_z, slots]` of tokens `[n]` that are in spans `[n]`."""
    new = np.flatnonzero(np.diff(spans, prepend=-1))
    codes = np.full((len(new), slots), EMPTY, np.int32)
    codes[spans, np.arange(len(ids)) - new[spans]] = ids
    return codes


def join_sequences(pieces: Sequence[ZSequence]) -> ZSequence:
    """Sequences of parts of one text, in order, as one sequence."""
    return dataclasses.replace(
        pieces[0],
        codes=np.concatenate([z.codes for z in pieces]),
        places=np.concatenate([z.places for z in pieces]),
        spans=np.concatenate([z.spans for z in pieces]),
        digest=b"",
    )


def _spans(starts: IntArray, spans: IntArray, first: int, end: int) -> IntArray:
    """Character spans `[n_z, 2]`: each reaches to the next."""
    begins = starts[np.flatnonzero(np.diff(spans, prepend=-1))].copy()
    begins[0] = first
    return np.stack([begins, np.append(begins[1:], end)], axis=1)


def _seal(magic: bytes, fingerprint: str, body: bytes) -> bytes:
    own = bytes.fromhex(fingerprint)
    return _HEADER.pack(magic, own, zlib.crc32(body, zlib.crc32(own))) + body


def _unseal(magic: bytes, data: bytes) -> tuple[str, bytes]:
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


def stored_fingerprint(data: bytes) -> str:
    """Whose codes the bytes of a `ZSequence` hold; they are checked, and no ids are decoded."""
    return _unseal(_SEQUENCE_MAGIC, data)[0]


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


def inflate(data: bytes) -> bytes:
    """Inverse of `deflate`."""
    try:
        return zlib.decompress(data, wbits=-zlib.MAX_WBITS)
    except zlib.error as error:
        raise SequenceError(
            "this Z-token sequence is damaged; compress the source text again."
        ) from error


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
