"""`CompressedText`, a text compressed once for every rate, and its bytes."""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ztok_rag.codec.allocation import allocate, choose_held, count_z_tokens
from ztok_rag.codec.sequence import IntArray, ZSequence, character_spans, pack_codes
from ztok_rag.codec.serialization import damaged, parse_varints, varints
from ztok_rag.codec.token_code import TokenCode
from ztok_rag.errors import SequenceError

LEVELS = 7
"""Steps in which a token's surprisal is kept; the first is of tokens that the base predicts."""

_TEXT_VERSION = b"\x03"
_EDGES = np.array([1.0, 2.0, 3.5, 5.5, 8.0])  # nats, between the levels above the first
_NATS = np.array([0.25, 0.6, 1.5, 2.7, 4.4, 6.6, 10.0])  # that each level stands for
_FLOOR = 0.35  # of the mean weight, added to every token's


def levels_of(nats: NDArray[np.float64], predicted: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Surprisal `[n]` in `LEVELS` steps; tokens that the base predicts are in the first."""
    steps = 1 + np.searchsorted(_EDGES, nats, side="right")
    levels: NDArray[np.uint8] = np.where(predicted, 0, steps).astype(np.uint8)
    return levels


def edge_distance(nats: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far surprisal `[n]` is from where the next level begins or its own does, in nats."""
    distance: NDArray[np.float64] = np.abs(nats[:, None] - _EDGES).min(1)
    return distance


def weights_of(levels: NDArray[np.uint8], rarity: NDArray[np.float32]) -> NDArray[np.float64]:
    """Weights of tokens: the root of their surprisal, times how rare they are.

    Args:
        levels: `[n]` of `levels_of`.
        rarity: `[n]` nats that each token takes whatever stands before it.
    """
    weights: NDArray[np.float64] = np.sqrt(_NATS[levels] + 0.05) * rarity
    return weights


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
    def spans(self) -> IntArray:
        """`[n, 2]` characters `[start, end)` of each token, which reach to the next."""
        return np.stack([self.starts, np.append(self.starts[1:], self.characters)], axis=1)

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
            spans=character_spans(self.starts[held], spans, first, end),
            source_tokens=len(self),
            fingerprint=self.fingerprint,
            digest=self.digest if whole else b"",
            code=self.code,
        )

    def to_bytes(self) -> bytes:
        """Compact, checksummed bytes of ids and levels; what the text tells is left to the text."""
        body = varints([len(self)]) + self.code.encode(self.ids, self.levels)
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
        counts, at = parse_varints(body, 1)
        if int(counts[0]) != len(tokens):
            raise damaged()
        ids, levels = tokens.code.decode(body[at:], len(tokens), with_levels=True)
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
    return int(parse_varints(data[5:], 1)[0][0])
