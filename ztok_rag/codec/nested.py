"""`NestedSequence`: a text's Z-tokens at every rate, those of a coarser among those of a finer."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ztok_rag.codec.sequence import ZSequence, deflate, join_sequence, spans_from, split_sequence
from ztok_rag.errors import SequenceError

FINEST = 2.0
"""Source tokens per Z-token in a `NestedSequence`."""

RATES = tuple(FINEST * 2 ** (step / 8) for step in range(41))
"""The rates, up to 64, at which a `NestedSequence` gives a sequence of its own."""

_MAGIC = b"ZN1\n"


@dataclass(frozen=True, eq=False)
class NestedSequence:
    """A text's Z-tokens at every rate from `FINEST` on.

    Attributes:
        finest: all Z-tokens.
        lasts: uint8 `[n_z]`, the place in `RATES` of the highest rate that has the Z-token.
    """

    finest: ZSequence
    lasts: NDArray[np.uint8]

    def __post_init__(self) -> None:
        if self.lasts.shape != (len(self.finest),) or int(self.lasts.max()) >= len(RATES):
            raise SequenceError("a nested sequence has a place in RATES for each Z-token.")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NestedSequence) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash(self.to_bytes())

    @property
    def fingerprint(self) -> str:
        """See `ZSequence`."""
        return self.finest.fingerprint

    def kept(self, rate: float) -> NDArray[np.bool_]:
        """Of each Z-token, whether it is one at a rate; at rates below the finest, all are."""
        place = round(8 * math.log2(max(rate, FINEST) / FINEST))
        return self.lasts >= min(place, len(RATES) - 1)

    def at(self, rate: float) -> ZSequence:
        """The Z-tokens at the nearest of `RATES`, within 5% of the rate from `FINEST` on."""
        kept = self.kept(rate)
        windows = np.add.reduceat(kept, np.cumsum([0, *self.finest.windows[:-1]]), dtype=int)
        starts = self.finest.spans[kept, 0]
        starts[0] = 0
        return ZSequence(
            codes=self.finest.codes[kept],
            spans=spans_from(starts, int(self.finest.spans[-1, 1])),
            windows=tuple(windows.tolist()),
            source_tokens=self.finest.source_tokens,
            fingerprint=self.fingerprint,
        )

    def to_bytes(self) -> bytes:
        """Compact, checksummed bytes. Equal sequences give equal bytes."""
        return join_sequence(_MAGIC, self.finest, deflate(self.lasts.tobytes()))

    @classmethod
    def from_bytes(cls, data: bytes) -> NestedSequence:
        """Inverse of `to_bytes`.

        Raises:
            SequenceError: the bytes are not of a nested sequence, or are truncated or altered.
        """
        finest, packed = split_sequence(
            _MAGIC, data, "a nested sequence of this version; compress the text again."
        )
        return cls(finest, np.frombuffer(zlib.decompress(packed, -zlib.MAX_WBITS), np.uint8))
