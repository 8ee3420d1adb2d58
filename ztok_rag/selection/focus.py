"""Spending Z-tokens by the question: on what may answer it, and little else."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ztok_rag.codec.nested import RATES, NestedSequence
from ztok_rag.codec.segment import IntArray
from ztok_rag.codec.sequence import ZSequence, spans_from
from ztok_rag.selection.relevance import Source, find_answers
from ztok_rag.selection.sentences import FloatArray, SentenceScorer, Span, split_sentences

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor
    from ztok_rag.selection.embedding import Embedder
    from ztok_rag.storage.store import ZStore

Resolve = Callable[[Sequence[str]], tuple[list[NestedSequence], int]]
"""Takes texts; returns their Z-tokens, and how many of them were compressed."""

COMPOSED_RATES = (1.0, *RATES[::4], math.inf)
"""Rates to choose from for a piece; at the last it is left out."""

PIECE_WORDS = 6
"""Words in a piece, about."""

ENOUGH = 0.98
"""Likelihood that the answer is in what is read, at which no more is read."""

NEIGHBOUR_SHARE = 0.12
"""Share of a piece's worth that goes to each of the two beside it, as the answer's context."""


@lru_cache(maxsize=4096)
def split_pieces(text: str) -> tuple[Span, ...]:
    """Character ranges `[start, end)` of about `PIECE_WORDS` words; together the text.

    None reaches over the end of a sentence or a line.
    """
    starts = []
    for a, b in split_sentences(text):
        words = [a + match.start() for match in re.finditer(r"\S+", text[a:b])]
        count = max(1, round(len(words) / PIECE_WORDS))
        starts += [a, *(words[i * len(words) // count] for i in range(1, count))]
    return tuple(zip(starts, [*starts[1:], len(text)], strict=True))


def resolve_in_memory(compressor: ZCompressor) -> Resolve:
    """One that compresses each text once and keeps its Z-tokens in memory."""
    known: dict[str, NestedSequence] = {}

    def resolve(texts: Sequence[str]) -> tuple[list[NestedSequence], int]:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, compressor.compress_nested(new), strict=True))
        return [known[text] for text in texts], len(new)

    return resolve


class QuestionFocus:
    """Composes the Z-tokens of texts for a question, out of those they have at all rates."""

    def __init__(self, compressor: ZCompressor, scorer: SentenceScorer, resolve: Resolve) -> None:
        """See the class.

        Args:
            compressor: of the sequences.
            scorer: finds the sentences that the question is about.
            resolve: gives texts' Z-tokens.
        """
        self.compressor = compressor
        self.scorer = scorer
        self._resolve = resolve

    @classmethod
    def over(
        cls, compressor: ZCompressor, store: ZStore, embed_model: Embedder | None = None
    ) -> QuestionFocus:
        """One whose sequences, and the bits of whose sentences, are kept in a store."""
        scorer = SentenceScorer(compressor.tokenizer, embed_model, store)
        return cls(compressor, scorer, partial(store.resolve, compressor))

    def prepare(self, texts: Sequence[str]) -> int:
        """Make what `compose` needs beside the question; the number of texts compressed."""
        self.scorer.prepare(texts)
        return self._resolve(texts)[1]

    def stored_bytes(self, texts: Sequence[str]) -> int:
        """Bytes that are kept of texts for `compose`: Z-tokens, and the bits of sentences."""
        nested, _ = self._resolve(texts)
        return sum(len(z.to_bytes()) for z in nested) + self.scorer.stored_bytes(texts)

    def compose(
        self, question: str, texts: Sequence[str], rate: float, *, budget: int | None = None
    ) -> tuple[list[ZSequence], int]:
        """Z-tokens of texts for a question.

        Args:
            question: what will be asked.
            texts: retrieved for it; they share the Z-tokens.
            rate: source tokens per Z-token, over all texts, at least.
            budget: Z-tokens in all, at most, in place of the rate.

        Returns:
            The sequences, and how many of the texts had to be compressed.
        """
        if not texts:
            return [], 0
        whole = self.compressor.compress(texts, 1.0)
        if budget is None:
            budget = round(sum(map(len, whole)) / rate)
        if budget >= sum(map(len, whole)):
            return whole, 0
        nested, compressed = self._resolve(texts)
        parts = self._parts(texts, whole, nested)
        costs = {
            rate: np.concatenate([part.counts(rate) for part in parts]) for rate in COMPOSED_RATES
        }
        worth = np.concatenate(self._worth(question, texts, parts))
        sequences = _join(parts, allocate(worth, costs, budget, ENOUGH))
        # Texts without a piece are read as one Z-token, which the pieces of others then pay for.
        if (excess := sum(map(len, sequences)) - budget) > 0:
            sequences = _join(parts, allocate(worth, costs, budget - excess, ENOUGH))
        return sequences, compressed

    def worth(self, question: str, texts: Sequence[str]) -> list[FloatArray]:
        """For each text, of each of its pieces, how likely it answers the question.

        Pieces are those of `split_pieces`; all sum to 1, about.
        """
        whole, (nested, _) = self.compressor.compress(texts, 1.0), self._resolve(texts)
        return self._worth(question, texts, self._parts(texts, whole, nested))

    @staticmethod
    def _parts(
        texts: Sequence[str], whole: Sequence[ZSequence], nested: Sequence[NestedSequence]
    ) -> list[_Parts]:
        pieces = [split_pieces(text) for text in texts]
        return [_Parts(*own) for own in zip(pieces, whole, nested, strict=True)]

    def _worth(
        self, question: str, texts: Sequence[str], parts: Sequence[_Parts]
    ) -> list[FloatArray]:
        model = self.compressor.model
        sources = [
            Source.of(text, part.whole, part.nested, model.quantizer)
            for text, part in zip(texts, parts, strict=True)
        ]
        likely = combine(
            find_answers(model, question, sources),
            self.scorer.probabilities(question, texts),
            [owners(s.spans, split_sentences(t)) for t, s in zip(texts, sources, strict=True)],
        )
        return [part.worth(own) for part, own in zip(parts, likely, strict=True)]


def combine(
    by_token: Sequence[NDArray[np.float32]],
    by_sentence: Sequence[FloatArray],
    sentences: Sequence[IntArray],
) -> list[FloatArray]:
    """For each text, of each token, how likely it answers the question; all sum to 1.

    The product of two opinions: the relevance model's, and that of the embedding model and the
    question's words, which knows sentences only; `benchmarks/fit_focus.py` compares them.

    Args:
        by_token: what the relevance model says, `[tokens]` of each text.
        by_sentence: how likely the question is about each sentence, `[sentences]` of each text.
        sentences: the sentence of each token.
    """
    found = []
    for token, sentence, own in zip(by_token, by_sentence, sentences, strict=True):
        each = sentence / np.maximum(1, np.bincount(own, minlength=len(sentence)))
        found.append(token.astype(np.float64) * each[own])
    mass = sum(float(own.sum()) for own in found) or 1.0
    return [own / mass for own in found]


class _Parts:
    """The Z-tokens of one text's pieces at each rate."""

    def __init__(self, pieces: Sequence[Span], whole: ZSequence, nested: NestedSequence) -> None:
        """See the class.

        Args:
            pieces: of the text.
            whole: the text at rate 1.
            nested: the text at the other rates.
        """
        self.pieces = pieces
        self.whole = whole
        self.nested = nested
        self._owners_in_whole = owners(whole.spans, pieces)
        self._owners_in_finest = owners(nested.finest.spans, pieces)

    def worth(self, likely: FloatArray) -> FloatArray:
        """Of each piece, from how likely each token is to answer the question."""
        own = np.bincount(self._owners_in_whole, weights=likely, minlength=len(self.pieces))
        beside = np.convolve(own, [1.0, 0.0, 1.0], "same") if len(own) > 2 else own[::-1]
        worth: FloatArray = (1 - 2 * NEIGHBOUR_SHARE) * own + NEIGHBOUR_SHARE * beside
        return worth

    def _at(self, rate: float) -> tuple[ZSequence, IntArray]:
        """A sequence, and the piece of each of its Z-tokens that are there at a rate, or -1."""
        if rate == 1:
            return self.whole, self._owners_in_whole
        if math.isinf(rate):
            return self.nested.finest, np.full_like(self._owners_in_finest, -1)
        kept = self.nested.kept(rate)
        return self.nested.finest, np.where(kept, self._owners_in_finest, -1)

    def counts(self, rate: float) -> IntArray:
        """`[n]` Z-tokens of each piece at a rate."""
        return np.bincount(self._at(rate)[1] + 1, minlength=1 + len(self.pieces))[1:]

    def joined(self, rates: Sequence[float]) -> ZSequence:
        """The text's sequence with a rate of its own for each piece; one Z-token at least."""
        there = {rate: self._at(rate) for rate in set(rates)}
        codes, spans = [], []
        for number, ((start, end), rate) in enumerate(zip(self.pieces, rates, strict=True)):
            z, owners = there[rate]
            own = owners == number
            firsts = z.spans[own, 0].clip(start, end)
            firsts[:1] = start
            codes.append(z.codes[own])
            spans.append(spans_from(firsts, end))
        finest = self.nested.finest
        if not sum(map(len, codes)):
            best = int(self.nested.lasts.argmax())
            codes = [finest.codes[best : best + 1]]
            spans = [np.array([[finest.spans[0, 0], finest.spans[-1, 1]]])]
        joined = np.concatenate(spans)
        edges = finest.spans[np.cumsum([0, *finest.windows[:-1]]), 0]
        window = np.searchsorted(edges, joined[:, 0], side="right")
        return ZSequence(
            codes=np.concatenate(codes),
            spans=joined,
            windows=tuple(np.unique(window, return_counts=True)[1].tolist()),
            source_tokens=finest.source_tokens,
            fingerprint=finest.fingerprint,
        )


def _join(parts: Sequence[_Parts], rates: Sequence[float]) -> list[ZSequence]:
    """The sequence of each text, from the rates of all their pieces."""
    chosen = iter(rates)
    return [part.joined([next(chosen) for _ in part.pieces]) for part in parts]


def allocate(
    worth: FloatArray,
    costs: Mapping[float, NDArray[np.int64]],
    budget: int,
    enough: float = 1.0,
) -> list[float]:
    """A rate for each of `n` pieces: the likeliest whole, one after the other.

    Each gets the finest rate that what is left of the budget pays for. A reader does better on
    a few whole pieces than on something of many, and is misled by those that are of no use.

    Args:
        worth: `[n]` how likely each piece answers the question.
        costs: `[n]` Z-tokens of each piece, at each rate; one of them costs nothing.
        budget: Z-tokens in all.
        enough: share of all worth at which no other piece is read.
    """
    rates = sorted(costs)
    chosen = rates[-1:] * len(worth)
    order = np.argsort(-worth, kind="stable")
    before = np.cumsum(worth[order]) - worth[order]
    for piece in order[before < enough * worth.sum()].tolist():
        chosen[piece] = next(rate for rate in rates if costs[rate][piece] <= budget)
        budget -= int(costs[chosen[piece]][piece])
    return chosen


def owners(spans: NDArray[np.int64], parts: Sequence[Span]) -> IntArray:
    """The part of a text that the middle of each span `[n, 2]` lies in."""
    ends = np.array([end for _, end in parts])
    found: IntArray = np.searchsorted(ends[:-1], spans.mean(axis=1), side="right")
    return found
