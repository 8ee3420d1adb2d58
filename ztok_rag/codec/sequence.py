"""`ZSequence`, a text at one rate, and its bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ztok_rag.codec.allocation import allocate, choose_held, count_z_tokens
from ztok_rag.codec.packer import EMPTY
from ztok_rag.codec.serialization import (
    VARINT_BYTES,
    damaged,
    deflate,
    inflate,
    parse_varints,
    read_sequence_file,
    seal,
    unseal,
    varints,
    write_atomic,
)
from ztok_rag.codec.token_code import TokenCode
from ztok_rag.errors import SequenceError

if TYPE_CHECKING:
    from torch import Tensor

    from ztok_rag.codec.base import Tokens
    from ztok_rag.codec.reader import ZReader

T = TypeVar("T")
IntArray = NDArray[np.int64]

_SEQUENCE_MAGIC = b"ZT3\n"
_DIGEST_BYTES = 8
_MOST_SLOTS = 4096  # far above those of any checkpoint


def text_digest(text: str) -> bytes:
    """8 bytes that tell whether a text came back as it was."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=_DIGEST_BYTES).digest()


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
    def token_starts(self) -> IntArray:
        """`[n]` about where the tokens that are held begin in the source text."""
        owner = np.repeat(np.arange(len(self)), self.sizes)
        return self._starts(owner, np.arange(len(owner)))

    @property
    def runs(self) -> list[slice]:
        """Which of the tokens that are held stand side by side in the source, in order."""
        cuts = np.flatnonzero(np.diff(self.places) != 1) + 1
        edges = [0, *cuts.tolist(), len(self.places)]
        return list(itertools.starmap(slice, itertools.pairwise(edges)))

    @property
    def token_spans(self) -> IntArray:
        """`[n_z, 2]` source tokens of each Z-token, with those that were left out after its own."""
        firsts = self.places[np.cumsum(self.sizes) - self.sizes]
        edges = np.concatenate([[0], firsts[1:], [self.source_tokens]])
        return np.stack([edges[:-1], edges[1:]], axis=1)

    def run_starts(self, run: slice, alone: Tokens) -> IntArray:
        """Where tokens that are held begin in their own text, `[n]`.

        Args:
            run: which of them, without gaps.
            alone: the tokens of that text. Where they are others, as a part of a text may begin or
                end amid what is one token of it alone, places are about right.
        """
        if np.array_equal(alone.ids, self.ids[run]):
            return alone.starts
        starts: IntArray = self.token_starts[run] - self.token_starts[run.start]
        return starts

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

    def covering(
        self, start: int, end: int, *, unit: Literal["characters", "tokens"] = "characters"
    ) -> tuple[int, int]:
        """Which Z-tokens hold a part of the source text.

        Args:
            start: first character or token of the part.
            end: the one after its last.
            unit: what `start` and `end` count, in the source text.

        Returns:
            Index of the first Z-token that holds any of it, and of the one after the last.

        Raises:
            SequenceError: no Z-token holds any of it.
        """
        begins, ends = (self.token_spans if unit == "tokens" else self.spans).T
        # The first tokens of a character that takes several have a span of no characters.
        touched = np.flatnonzero((begins < end) & (np.maximum(ends, begins + 1) > start))
        if start >= end or not len(touched):
            raise SequenceError(
                f"no Z-token holds any of the {unit} from {start} to {end}; this sequence has "
                f"those from {begins[0]} to {ends[-1]}."
            )
        return int(touched[0]), int(touched[-1]) + 1

    def slice(
        self, start: int, end: int, *, unit: Literal["characters", "tokens"] = "characters"
    ) -> ZSequence:
        """The Z-tokens of a part of the source text, as a text of their own; nothing is decoded.

        Z-tokens are kept whole: those at the edges bring what else they hold, and `covering` tells
        how far that reaches. A character whose tokens are shared by two Z-tokens belongs to the
        later. Spans and places count from the beginning of the slice. The digest is empty, unless
        the slice is the whole sequence. Arguments and errors as `covering`.
        """
        first, last = self.covering(start, end, unit=unit)
        if (first, last) == (0, len(self)):
            return self
        part = self.part(first, last)
        return dataclasses.replace(part, spans=part.spans - part.spans[0, 0])

    @staticmethod
    def concat(sequences: Sequence[ZSequence]) -> ZSequence:
        """Sequences as one, in order, whose text is theirs joined without anything between.

        Spans and places count from the beginning of the first. The digest of several is empty: the
        text's cannot be told from theirs, so `decompress` does not check it.

        Raises:
            SequenceError: there is none, or they are not of one checkpoint.
        """
        if not sequences:
            raise SequenceError("there is nothing to concatenate; give at least one sequence.")
        if len({(z.fingerprint, z.slots) for z in sequences}) > 1:
            raise SequenceError(
                "sequences of several checkpoints cannot be concatenated; compress their texts "
                "again with one."
            )
        if len(sequences) == 1:
            return sequences[0]
        tokens = np.cumsum([0, *(z.source_tokens for z in sequences)])
        lengths = [z.spans[-1, 1] - z.spans[0, 0] for z in sequences]
        starts = np.cumsum([0, *lengths]) - [*(z.spans[0, 0] for z in sequences), 0]
        return dataclasses.replace(
            sequences[0],
            codes=np.concatenate([z.codes for z in sequences]),
            places=np.concatenate(
                [z.places + at for z, at in zip(sequences, tokens, strict=False)]
            ),
            spans=np.concatenate([z.spans + at for z, at in zip(sequences, starts, strict=False)]),
            source_tokens=int(tokens[-1]),
            digest=b"",
        )

    def __add__(self, other: ZSequence) -> ZSequence:
        """`concat` of two."""
        return self.concat([self, other]) if isinstance(other, ZSequence) else NotImplemented

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
            spans=character_spans(self._starts(owner, held), spans, first, end),
            digest=self.digest if whole else b"",
        )

    def _starts(self, owner: IntArray, held: IntArray) -> IntArray:
        """About where tokens begin in the text: a Z-token's characters are shared out evenly."""
        sizes, own = self.sizes, owner[held]
        inside = held - (np.cumsum(sizes) - sizes)[own]
        lengths = self.spans[:, 1] - self.spans[:, 0]
        starts: IntArray = self.spans[own, 0] + lengths[own] * inside // sizes[own]
        return starts

    def to_embeds(self, reader: ZReader) -> Tensor:
        """Input embeddings `[n_z, hidden]` in the base's dtype, for any engine that takes them.

        `ZReader.to_embeds` gives those of a whole prompt.

        Args:
            reader: of the checkpoint that made the sequence.

        Raises:
            SequenceError: another checkpoint made it.
        """
        reader.check(self)
        return reader.model.embed_sequence(self)

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
        packed = deflate(varints(numbers))
        body = varints([*counts, len(self.digest), len(packed)]) + self.digest + packed
        return seal(_SEQUENCE_MAGIC, self.fingerprint, body + self.code.encode(self.ids))

    @classmethod
    def from_bytes(cls, data: bytes, code: TokenCode) -> ZSequence:
        """Inverse of `to_bytes`.

        Args:
            data: the bytes.
            code: the entropy code of the checkpoint that made them.

        Raises:
            SequenceError: the bytes are not a Z-token sequence, or are truncated or altered.
        """
        fingerprint, body = unseal(_SEQUENCE_MAGIC, data)
        counts, at = parse_varints(body, 7)
        source_tokens, n_z, slots, held, whole, digest_bytes, packed = counts.tolist()
        if not 1 <= n_z <= held <= source_tokens or not slots <= _MOST_SLOTS:
            raise damaged()
        digest, at = body[at : at + digest_bytes], at + digest_bytes
        ids, _ = code.decode(body[at + packed :], held)  # `held` is no more than these bytes give
        count = 3 * n_z + (0 if whole else held)
        raw = inflate(body[at : at + packed], VARINT_BYTES * count + 1)
        numbers, _ = parse_varints(raw, count)
        sizes, starts, lengths, steps = np.split(numbers, [n_z, 2 * n_z, 3 * n_z])
        starts = np.cumsum(starts)
        if int(sizes.sum()) != held or int(sizes.min()) < 1 or int(sizes.max()) > slots:
            raise damaged()
        if not whole and int(steps.sum()) + held > source_tokens:
            raise damaged()
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


def sequences_of(prompt: Iterable[str | ZSequence | None]) -> list[ZSequence]:
    """The sequences in a prompt, in order."""
    return [part for part in prompt if isinstance(part, ZSequence)]


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


def character_spans(starts: IntArray, spans: IntArray, first: int, end: int) -> IntArray:
    """Character spans `[n_z, 2]`: each reaches to the next."""
    begins = starts[np.flatnonzero(np.diff(spans, prepend=-1))].copy()
    begins[0] = first
    return np.stack([begins, np.append(begins[1:], end)], axis=1)


def stored_fingerprint(data: bytes) -> str:
    """Whose codes the bytes of a `ZSequence` hold; they are checked, and no ids are decoded."""
    return unseal(_SEQUENCE_MAGIC, data)[0]
