"""Query-aware selection: spend the budget on pieces likely to contain the answer.

Texts are cut into pieces of a few words. Each piece gets a score for the question, and the best
are read at the lowest rates until the budget is spent. A text is compressed for all rates at once,
so nothing is compressed again for a question.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ztok_rag.codec.allocation import count_z_tokens
from ztok_rag.codec.compressed_text import CompressedText
from ztok_rag.codec.sequence import IntArray, ZSequence, join_sequences
from ztok_rag.inputs import as_list, repair_surrogates
from ztok_rag.selection.relevance import PassageFeatures, find_answers
from ztok_rag.selection.sentences import FloatArray, SentenceScorer, Span, split_sentences
from ztok_rag.selection.words import word_starts

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor
    from ztok_rag.selection.embedding import Embedder
    from ztok_rag.storage.store import ZStore

Resolve = Callable[[Sequence[str]], tuple[list[CompressedText], int]]
"""Maps texts to their compressed form, and to the number of texts that were compressed for it."""

PIECE_RATES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, math.inf)
"""Rates that a piece may be read at; a piece at the last one is left out."""

PIECE_WORDS = 6
"""Average number of words in a piece."""

ENOUGH = 0.98
"""Once the chosen pieces have this share of all scores, no other piece is read."""

_TRIES = 4

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
        words = word_starts(text, a, b)
        count = max(1, round(len(words) / PIECE_WORDS))
        starts += [a, *(words[i * len(words) // count] for i in range(1, count))]
    return tuple(zip(starts, [*starts[1:], len(text)], strict=True))


def resolve_in_memory(compressor: ZCompressor) -> Resolve:
    """A `Resolve` that compresses each text once and keeps it in memory."""
    known: dict[str, CompressedText] = {}

    def resolve(texts: Sequence[str]) -> tuple[list[CompressedText], int]:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, compressor.compress_all_rates(new), strict=True))
        return [known[text] for text in texts], len(new)

    return resolve


class QueryAwareSelector:
    """Selects the Z-tokens of retrieved texts that a question needs, within a budget."""

    def __init__(self, compressor: ZCompressor, scorer: SentenceScorer, resolve: Resolve) -> None:
        """Set up.

        Args:
            compressor: its model scores tokens.
            scorer: scores sentences.
            resolve: gives compressed texts.
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
        _, texts = _repaired("", texts)
        self.scorer.prepare(texts)
        return self._resolve(texts)[1]

    def stored_bytes(self, texts: Sequence[str]) -> int:
        """Bytes kept for texts: their Z-tokens and the embeddings of their sentences."""
        compressed, _ = self._resolve(texts)
        return sum(len(own.to_bytes()) for own in compressed) + self.scorer.stored_bytes(texts)

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
        question, texts = _repaired(question, texts)
        if not texts:
            return [], 0
        compressed, made = self._resolve(texts)
        total = sum(map(len, compressed))
        if budget is None:
            budget = round(total / rate)
        slots = self.compressor.slots
        if budget >= total:
            return [own.at(1.0, slots) for own in compressed], made
        parts = [_Parts(split_pieces(t), own) for t, own in zip(texts, compressed, strict=True)]
        costs = {
            rate: np.concatenate([part.counts(rate, slots) for part in parts])
            for rate in PIECE_RATES
        }
        scores = np.concatenate(self._scores(question, texts, parts))
        # A text of which no piece is read takes one Z-token, which the others have to save; and
        # pieces that are read together round to fewer or more Z-tokens than each alone.
        spare, sequences = 0, []
        for _ in range(_TRIES):
            rates = allocate(scores, costs, max(0, budget - spare), ENOUGH)
            sequences = _join(parts, rates, slots)
            excess = sum(map(len, sequences)) - budget
            if excess <= 0:
                break
            spare += excess
        return sequences, made

    def scores(self, question: str, texts: Sequence[str]) -> list[FloatArray]:
        """Probability that each piece of each text holds the answer.

        Returns:
            For each text `[n_pieces]`, with the pieces of `split_pieces`. The sum over all texts
            is about 1.
        """
        question, texts = _repaired(question, texts)
        compressed, _ = self._resolve(texts)
        parts = [_Parts(split_pieces(t), own) for t, own in zip(texts, compressed, strict=True)]
        return self._scores(question, texts, parts)

    def _scores(
        self, question: str, texts: Sequence[str], parts: Sequence[_Parts]
    ) -> list[FloatArray]:
        features = [
            PassageFeatures.of(text, part.text) for text, part in zip(texts, parts, strict=True)
        ]
        likely = combine(
            find_answers(self.compressor.model, question, features),
            self.scorer.probabilities(question, texts),
            [owners(f.spans, split_sentences(t)) for t, f in zip(texts, features, strict=True)],
        )
        return [part.scores(own) for part, own in zip(parts, likely, strict=True)]


def _repaired(question: str, texts: Sequence[str]) -> tuple[str, list[str]]:
    """Question and texts without half surrogate pairs, which no tokenizer takes."""
    repaired = [repair_surrogates(text, "a text") for text in as_list(texts, "texts")]
    return repair_surrogates(question, "the question"), repaired


def combine(
    by_token: Sequence[NDArray[np.float32]],
    by_sentence: Sequence[FloatArray],
    sentences: Sequence[IntArray],
) -> list[FloatArray]:
    """Probability that each token of each text is part of the answer.

    It is the product of the selector's probability and that of the token's sentence.

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
    """A compressed text, and the piece that each of its tokens is in."""

    def __init__(self, pieces: Sequence[Span], text: CompressedText) -> None:
        """Find the piece of every token.

        Args:
            pieces: character ranges `[start, end)`.
            text: the text.
        """
        self.pieces = pieces
        self.text = text
        self._owners = owners(token_spans(text), pieces)

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
            return self.text.at(float(max(1, len(self.text))), slots)
        if len(read) == 1 and len(read[0]) == len(self.text):
            return self.text.at(float(of_token[0]), slots)
        return join_sequences([self.text.view(run, float(of_token[run[0]]), slots) for run in read])


def token_spans(text: CompressedText) -> IntArray:
    """Character ranges `[n, 2]` of a text's tokens, each reaching to the next."""
    return np.stack([text.starts, np.append(text.starts[1:], text.characters)], axis=1)


def _join(parts: Sequence[_Parts], rates: Sequence[float], slots: int) -> list[ZSequence]:
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
