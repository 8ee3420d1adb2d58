"""Pieces of texts, and how many Z-tokens each may take.

Texts are cut into pieces of a few words. Those that likely hold an answer are read at the lowest
rates until the budget is spent. A text is compressed for all rates at once, so nothing is
compressed again for a question.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ztok_rag.codec.allocation import count_z_tokens
from ztok_rag.codec.compressed_text import CompressedText
from ztok_rag.codec.sequence import IntArray, ZSequence, join_sequences
from ztok_rag.selection.sentences import FloatArray, Span, split_sentences
from ztok_rag.selection.words import word_starts

PIECE_RATES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, math.inf)
"""Rates that a piece may be read at; a piece at the last one is left out."""

PIECE_WORDS = 6
"""Average number of words in a piece."""

ENOUGH = 0.98
"""Once the chosen pieces have this share of all scores, no other piece is read."""

NEIGHBOUR_SHARE = 0.12
"""Share of a piece's score that goes to each of its two neighbours: an answer needs context."""

_TRIES = 4


@lru_cache(maxsize=4096)
def split_pieces(text: str) -> tuple[Span, ...]:
    """Cut a text into pieces of about `PIECE_WORDS` words, within sentences and lines.

    Returns:
        Character ranges `[start, end)`, in order and without gaps.
    """
    starts = []
    for a, b in split_sentences(text):
        words = word_starts(text, a, b)
        count = max(1, round(len(words) / PIECE_WORDS))
        starts += [a, *(words[i * len(words) // count] for i in range(1, count))]
    return tuple(zip(starts, [*starts[1:], len(text)], strict=True))


class TextPieces:
    """A compressed text, and the piece that each of its tokens is in."""

    def __init__(self, text: str, tokens: CompressedText) -> None:
        """Cut a text into pieces, and find that of every token.

        Args:
            text: the text.
            tokens: the same text, compressed.
        """
        self.pieces = split_pieces(text)
        self.tokens = tokens
        self._owners = owners(tokens.spans, self.pieces)

    def scores(self, likely: FloatArray) -> FloatArray:
        """Scores `[n_pieces]` from the probabilities `[n_tokens]` of tokens."""
        own = np.bincount(self._owners, weights=likely, minlength=len(self.pieces))
        beside = np.convolve(own, [1.0, 0.0, 1.0], "same") if len(own) > 2 else own[::-1]
        scores: FloatArray = (1 - 2 * NEIGHBOUR_SHARE) * own + NEIGHBOUR_SHARE * beside
        return scores

    def counts(self, rate: float, slots: int) -> IntArray:
        """Number of Z-tokens of each piece at a rate, `[n_pieces]`."""
        sizes = np.bincount(self._owners, minlength=len(self.pieces))
        if math.isinf(rate):
            return np.zeros_like(sizes)
        return np.array([count_z_tokens(int(n), rate, slots) if n else 0 for n in sizes])

    def joined(self, rates: Sequence[float], slots: int) -> ZSequence:
        """The text's sequence, each piece at its own rate.

        Neighbours at the same rate are read together. Where all pieces are left out, one Z-token
        of the weightiest tokens stands for the text.
        """
        of_token = np.array(rates)[self._owners]
        runs = np.split(np.arange(len(of_token)), np.flatnonzero(of_token[1:] != of_token[:-1]) + 1)
        read = [run for run in runs if math.isfinite(of_token[run[0]])]
        if not read:
            return self.tokens.at(float(max(1, len(self.tokens))), slots)
        if len(read) == 1 and len(read[0]) == len(self.tokens):
            return self.tokens.at(float(of_token[0]), slots)
        return join_sequences(
            [self.tokens.view(run, float(of_token[run[0]]), slots) for run in read]
        )


def choose_pieces(
    parts: Sequence[TextPieces],
    scores: Sequence[FloatArray],
    budget: int,
    slots: int,
) -> list[ZSequence]:
    """What is read of some texts within a budget.

    Args:
        parts: the texts, of which there is at least one.
        scores: `[n_pieces]` of each text, how likely a piece holds the answer.
        budget: the most Z-tokens in all.
        slots: most tokens that a Z-token holds.

    Returns:
        One sequence per text.
    """
    costs = {
        rate: np.concatenate([part.counts(rate, slots) for part in parts]) for rate in PIECE_RATES
    }
    # A text of which no piece is read takes one Z-token, which the others have to save; and
    # pieces that are read together round to fewer or more Z-tokens than each alone.
    spare, sequences = 0, []
    for _ in range(_TRIES):
        rates = allocate(np.concatenate(scores), costs, max(0, budget - spare), ENOUGH)
        sequences = _join(parts, rates, slots)
        excess = sum(map(len, sequences)) - budget
        if excess <= 0:
            break
        spare += excess
    return sequences


def _join(parts: Sequence[TextPieces], rates: Sequence[float], slots: int) -> list[ZSequence]:
    """The sequence of each text; `rates` has the pieces of all texts, one text after another."""
    chosen = iter(rates)
    return [part.joined([next(chosen) for _ in part.pieces], slots) for part in parts]


def allocate(
    scores: FloatArray,
    costs: Mapping[float, NDArray[np.int64]],
    budget: int,
    enough: float = 1.0,
) -> list[float]:
    """A rate for each of `n` pieces.

    In order of their scores, each piece gets the lowest rate that the rest of the budget pays for.
    A reader answers better from a few pieces at full length than from a little of many, and pieces
    of no use mislead it.

    Args:
        scores: `[n]` probability that a piece holds the answer.
        costs: for each rate `[n]` Z-tokens of the pieces; one of the rates costs nothing.
        budget: the most Z-tokens in all.
        enough: share of the sum of scores after which all other pieces are left out.
    """
    rates = sorted(costs)
    chosen = rates[-1:] * len(scores)
    order = np.argsort(-scores, kind="stable")
    before = np.cumsum(scores[order]) - scores[order]
    for piece in order[before < enough * scores.sum()].tolist():
        chosen[piece] = next(rate for rate in rates if costs[rate][piece] <= budget)
        budget -= int(costs[chosen[piece]][piece])
    return chosen


def owners(spans: NDArray[np.int64], parts: Sequence[Span]) -> IntArray:
    """The part in which the middle of each span lies, `[n]`.

    Args:
        spans: character ranges, `[n, 2]`.
        parts: character ranges that cover the text without gaps.
    """
    ends = np.array([end for _, end in parts])
    found: IntArray = np.searchsorted(ends[:-1], spans.mean(axis=1), side="right")
    return found
