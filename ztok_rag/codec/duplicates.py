"""Text that occurs several times in Z-token sequences, found in their codes alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ztok_rag.codec.sequence import ZSequence
from ztok_rag.errors import ZtokError

IntArray = NDArray[np.int64]


@dataclass(frozen=True, order=True)
class Place:
    """Where a run of tokens stands.

    Attributes:
        sequence: index of the sequence.
        start: first token of the run, among those that the sequence holds (`ZSequence.ids`).
        end: the token after its last.
        span: half-open character range of the Z-tokens that hold it; they may hold more.
    """

    sequence: int
    start: int
    end: int
    span: tuple[int, int]


@dataclass(frozen=True)
class Duplicate:
    """A run of tokens that stands in several places, in order.

    It cannot be made longer, at either end, without losing a place.
    """

    places: tuple[Place, ...]

    @property
    def tokens(self) -> int:
        """Length of the run."""
        return self.places[0].end - self.places[0].start


def find_duplicates(sequences: Sequence[ZSequence], at_least: int = 32) -> list[Duplicate]:
    """Runs of equal tokens, in one or several sequences, whatever Z-tokens they are cut into.

    A run has no gap of tokens that were left out. Places of one run may overlap, as in "la la la",
    and a shorter run may lie in a longer one if it stands elsewhere, too. All runs are found, by a
    suffix array, in time `n log² n` of the tokens held.

    Args:
        sequences: of one checkpoint.
        at_least: fewest tokens of a run, at least 1.

    Returns:
        The longest runs first.

    Raises:
        ZtokError: `at_least` is below 1, or the sequences are of several checkpoints.
    """
    if at_least < 1:
        raise ZtokError(f"a run has at least one token; {at_least} cannot be asked for.")
    if len({z.fingerprint for z in sequences}) > 1:
        raise ZtokError("the sequences are of several checkpoints; compress the texts with one.")
    if not sequences:
        return []
    ids, owners, offsets = _joined(sequences)
    found = []
    for starts, length in _maximal_repeats(ids, at_least):
        places = [
            _place(sequences[owners[at]], int(owners[at]), int(offsets[at]), length)
            for at in starts
        ]
        found.append(Duplicate(tuple(sorted(places))))
    return sorted(found, key=lambda d: (-d.tokens, d.places))


def _joined(sequences: Sequence[ZSequence]) -> tuple[IntArray, IntArray, IntArray]:
    """All tokens in a row, a separator of its own at each gap and end, and where each stands."""
    ids, owners, offsets = [], [], []
    for number, z in enumerate(sequences):
        cuts = [run.stop for run in z.runs]
        ids.append(np.insert(z.ids, cuts, -1))
        offsets.append(np.insert(np.arange(len(z.ids)), cuts, -1))
        owners.append(np.full(len(ids[-1]), number))
    joined = np.concatenate(ids)
    separators = np.flatnonzero(joined < 0)
    joined[separators] = -1 - np.arange(len(separators))
    return joined, np.concatenate(owners), np.concatenate(offsets)


def _place(z: ZSequence, sequence: int, start: int, length: int) -> Place:
    ends = np.cumsum(z.sizes)
    first, last = np.searchsorted(ends, [start, start + length - 1], side="right")
    return Place(sequence, start, start + length, (int(z.spans[first, 0]), int(z.spans[last, 1])))


def _maximal_repeats(ids: IntArray, at_least: int) -> Iterator[tuple[list[int], int]]:
    """Starts and length of each run that stands in several places and cannot be made longer."""
    order = _suffix_array(ids)
    common = _common_prefixes(ids, order)
    before = np.append(ids[-1], ids[:-1])[order]  # the token before each suffix
    changes = np.append(0, np.cumsum(before[1:] != before[:-1]))
    # Suffixes that share a prefix are neighbours. Each item opened is such a group: its first
    # suffix, and the length of the prefix.
    opened = [(0, 0)]
    for last, shared in enumerate([*common.tolist(), 0]):
        first = last
        while opened[-1][1] > shared:
            first, length = opened.pop()
            if length >= at_least and changes[first] != changes[last]:
                yield sorted(order[first : last + 1].tolist()), length
        if shared > opened[-1][1]:
            opened.append((first, shared))


def _suffix_array(ids: IntArray) -> IntArray:
    """`[n]` where the suffixes of `ids` begin, sorted; by doubling (Manber and Myers 1993)."""
    ranks = np.unique(ids, return_inverse=True)[1].astype(np.int64)
    size = 1
    while True:
        following = np.full(len(ids), -1, np.int64)
        following[: max(0, len(ids) - size)] = ranks[size:]
        order: IntArray = np.lexsort((following, ranks))
        new = np.diff(ranks[order], prepend=-1) != 0
        new |= np.diff(following[order], prepend=-2) != 0
        ranks[order] = np.cumsum(new) - 1
        if new.all():
            return order
        size *= 2


def _common_prefixes(ids: IntArray, order: IntArray) -> IntArray:
    """`[n - 1]` length of the prefix that each sorted suffix shares with the next.

    By the method of Kasai et al. (2001), in linear time.
    """
    row = ids.tolist()
    rank = np.empty(len(row), np.int64)
    rank[order] = np.arange(len(row))
    lengths = np.zeros(max(0, len(row) - 1), np.int64)
    shared = 0
    for start, place in enumerate(rank.tolist()):
        if place == len(row) - 1:
            shared = 0
            continue
        other = int(order[place + 1])
        limit = len(row) - max(start, other)
        while shared < limit and row[start + shared] == row[other + shared]:
            shared += 1
        lengths[place] = shared
        shared = max(0, shared - 1)
    return lengths
