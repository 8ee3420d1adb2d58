"""Query-aware selection: spend the budget on pieces likely to contain the answer.

Texts are cut into pieces of a few words. Each piece gets a score for the question, and the best
are read at the lowest rates until the budget is spent. The Z-tokens come out of those that a text
has at all rates, so nothing is compressed again for a question.
"""

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
"""Maps texts to their Z-tokens at all rates, and to the number of texts that were compressed."""

PIECE_RATES = (1.0, *RATES[::4], math.inf)
"""Rates that a piece may be read at; a piece at the last one is left out."""

PIECE_WORDS = 6
"""Average number of words in a piece."""

ENOUGH = 0.98
"""Once the chosen pieces have this share of all scores, no other piece is read."""

NEIGHBOUR_SHARE = 0.12
"""Share of a piece's score that goes to each of its two neighbours: an answer needs context."""


@lru_cache(maxsize=4096)
def split_pieces(text: str) -> tuple[Span, ...]:
    """Cut a text into pieces of about `PIECE_WORDS` words, within sentences and lines.

    Returns:
        Character ranges `[start, end)`, in order and without gaps.
    """
    starts = []
    for a, b in split_sentences(text):
        words = [a + match.start() for match in re.finditer(r"\S+", text[a:b])]
        count = max(1, round(len(words) / PIECE_WORDS))
        starts += [a, *(words[i * len(words) // count] for i in range(1, count))]
    return tuple(zip(starts, [*starts[1:], len(text)], strict=True))


def resolve_in_memory(compressor: ZCompressor) -> Resolve:
    """A `Resolve` that compresses each text once and keeps its Z-tokens in memory."""
    known: dict[str, NestedSequence] = {}

    def resolve(texts: Sequence[str]) -> tuple[list[NestedSequence], int]:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, compressor.compress_nested(new), strict=True))
        return [known[text] for text in texts], len(new)

    return resolve


class QueryAwareSelector:
    """Selects the Z-tokens of retrieved texts that a question needs, within a budget."""

    def __init__(self, compressor: ZCompressor, scorer: SentenceScorer, resolve: Resolve) -> None:
        """Set up.

        Args:
            compressor: its model scores tokens, and it gives texts at rate 1.
            scorer: scores sentences.
            resolve: gives the Z-tokens of texts at all other rates.
        """
        self.compressor = compressor
        self.scorer = scorer
        self._resolve = resolve

    @classmethod
    def over(
        cls, compressor: ZCompressor, store: ZStore, embed_model: Embedder | None = None
    ) -> QueryAwareSelector:
        """A selector that keeps Z-tokens and sentence embeddings in a store.

        Args:
            compressor: compresses what the store does not hold.
            store: where they are kept.
            embed_model: embeds sentences and questions; `None` is the default model.
        """
        scorer = SentenceScorer(compressor.tokenizer, embed_model, store)
        return cls(compressor, scorer, partial(store.resolve, compressor))

    def prepare(self, texts: Sequence[str]) -> int:
        """Compress texts and embed their sentences, ahead of any question.

        Returns:
            The number of texts that had to be compressed.
        """
        self.scorer.prepare(texts)
        return self._resolve(texts)[1]

    def stored_bytes(self, texts: Sequence[str]) -> int:
        """Bytes kept for texts: their Z-tokens and the embeddings of their sentences."""
        nested, _ = self._resolve(texts)
        return sum(len(z.to_bytes()) for z in nested) + self.scorer.stored_bytes(texts)

    def compose(
        self, question: str, texts: Sequence[str], rate: float, *, budget: int | None = None
    ) -> tuple[list[ZSequence], int]:
        """Select the Z-tokens of texts for a question.

        Args:
            question: the question.
            texts: the texts retrieved for it, which share the budget.
            rate: source tokens of all texts, divided by this, are the budget.
            budget: the most Z-tokens in all, in place of the rate.

        Returns:
            One sequence per text, and the number of texts that had to be compressed.
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
            rate: np.concatenate([part.counts(rate) for part in parts]) for rate in PIECE_RATES
        }
        scores = np.concatenate(self._scores(question, texts, parts))
        sequences = _join(parts, allocate(scores, costs, budget, ENOUGH))
        # A text of which no piece is read takes one Z-token, which the others have to save.
        if (excess := sum(map(len, sequences)) - budget) > 0:
            sequences = _join(parts, allocate(scores, costs, budget - excess, ENOUGH))
        return sequences, compressed

    def scores(self, question: str, texts: Sequence[str]) -> list[FloatArray]:
        """Probability that each piece of each text holds the answer.

        Returns:
            For each text `[n_pieces]`, with the pieces of `split_pieces`. The sum over all texts
            is about 1.
        """
        whole, (nested, _) = self.compressor.compress(texts, 1.0), self._resolve(texts)
        return self._scores(question, texts, self._parts(texts, whole, nested))

    @staticmethod
    def _parts(
        texts: Sequence[str], whole: Sequence[ZSequence], nested: Sequence[NestedSequence]
    ) -> list[_Parts]:
        pieces = [split_pieces(text) for text in texts]
        return [_Parts(*own) for own in zip(pieces, whole, nested, strict=True)]

    def _scores(
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
        return [part.scores(own) for part, own in zip(parts, likely, strict=True)]


def combine(
    by_token: Sequence[NDArray[np.float32]],
    by_sentence: Sequence[FloatArray],
    sentences: Sequence[IntArray],
) -> list[FloatArray]:
    """Probability that each token of each text is part of the answer.

    It is the product of the relevance model's probability and that of the token's sentence.
    `benchmarks/fit_focus.py` compares it with either alone.

    Args:
        by_token: of the relevance model, `[n_tokens]` for each text.
        by_sentence: of `SentenceScorer`, `[n_sentences]` for each text.
        sentences: the sentence of each token, `[n_tokens]` for each text.

    Returns:
        `[n_tokens]` for each text. The sum over all texts is 1.
    """
    found = []
    for token, sentence, own in zip(by_token, by_sentence, sentences, strict=True):
        each = sentence / np.maximum(1, np.bincount(own, minlength=len(sentence)))
        found.append(token.astype(np.float64) * each[own])
    mass = sum(float(own.sum()) for own in found) or 1.0
    return [own / mass for own in found]


class _Parts:
    """A text's pieces, and the Z-tokens of each piece at each rate."""

    def __init__(self, pieces: Sequence[Span], whole: ZSequence, nested: NestedSequence) -> None:
        """Find the piece of every Z-token.

        Args:
            pieces: character ranges `[start, end)`.
            whole: the text at rate 1.
            nested: the text at the other rates.
        """
        self.pieces = pieces
        self.whole = whole
        self.nested = nested
        self._owners_in_whole = owners(whole.spans, pieces)
        self._owners_in_finest = owners(nested.finest.spans, pieces)

    def scores(self, likely: FloatArray) -> FloatArray:
        """Scores `[n_pieces]` from the probabilities `[n_tokens]` of tokens."""
        own = np.bincount(self._owners_in_whole, weights=likely, minlength=len(self.pieces))
        beside = np.convolve(own, [1.0, 0.0, 1.0], "same") if len(own) > 2 else own[::-1]
        scores: FloatArray = (1 - 2 * NEIGHBOUR_SHARE) * own + NEIGHBOUR_SHARE * beside
        return scores

    def _at(self, rate: float) -> tuple[ZSequence, IntArray]:
        """A sequence, and for each of its Z-tokens the piece, or -1 if the rate has it not."""
        if rate == 1:
            return self.whole, self._owners_in_whole
        if math.isinf(rate):
            return self.nested.finest, np.full_like(self._owners_in_finest, -1)
        kept = self.nested.kept(rate)
        return self.nested.finest, np.where(kept, self._owners_in_finest, -1)

    def counts(self, rate: float) -> IntArray:
        """Number of Z-tokens of each piece at a rate, `[n_pieces]`."""
        return np.bincount(self._at(rate)[1] + 1, minlength=1 + len(self.pieces))[1:]

    def joined(self, rates: Sequence[float]) -> ZSequence:
        """The text's sequence, each piece at its own rate.

        Where all pieces are left out, the Z-token that the highest rate keeps stands for the text.
        """
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
    """The sequence of each text; `rates` has the pieces of all texts, one text after another."""
    chosen = iter(rates)
    return [part.joined([next(chosen) for _ in part.pieces]) for part in parts]


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
