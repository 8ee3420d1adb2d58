"""Spending Z-tokens by the question: what it seems to be about is read at a finer rate."""

from __future__ import annotations

import math
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ztok_rag.nested import RATES, NestedSequence
from ztok_rag.segment import IntArray
from ztok_rag.sequence import ZSequence, spans_from

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding

    from ztok_rag.compressor import ZCompressor
    from ztok_rag.store import ZStore

Span = tuple[int, int]
FloatArray = NDArray[np.float64]
Resolve = Callable[[Sequence[str]], tuple[list[NestedSequence], int]]
"""Takes texts; returns their Z-tokens, and how many of them were compressed."""

COMPOSED_RATES = RATES[::4]
"""Rates to choose from for a sentence, beside 1."""

KEPT = ((1, 1.0), (2, 0.80), (4, 0.62), (8, 0.41), (16, 0.29), (32, 0.22), (64, 0.17))
"""Share of the raw text's answer F1 that Z-tokens of a rate keep, about."""

LEXICAL_WEIGHT = 0.5
"""Worth of the question's words that a sentence holds, beside its cosine to the question."""

TEXT_WEIGHT = 1.0
"""Worth of the most relevant sentence of a text to all others in it."""

TEMPERATURE = 0.15
"""Of the relevance of sentences; `benchmarks/fit_focus.py` fits these three."""

_WORD = re.compile(r"\w+")
_COMMON_IDS = 200
_MEMORY = 4096


@lru_cache(maxsize=_MEMORY)
def split_sentences(text: str) -> tuple[Span, ...]:
    """Character ranges `[start, end)` of the text's sentences and lines; together the text."""
    starts = [0]
    for a, b in _punkt().span_tokenize(text):
        starts.append(a)
        starts += [a + match.end() for match in re.finditer(r"\n+", text[a:b])]
    starts = sorted(set(starts))
    return tuple((a, b) for a, b in zip(starts, [*starts[1:], len(text)], strict=True) if a < b)


class SentenceScorer:
    """How likely each sentence of some texts is to hold what a question asks for.

    A sentence's relevance is its cosine to the question in an embedding space, of which one bit
    per dimension is kept, plus the share of the question's words that it holds, rare words
    weighing more, plus that of the most relevant sentence of its text.
    """

    def __init__(
        self,
        tokenizer: Any,
        embed_model: BaseEmbedding | None = None,
        store: ZStore | None = None,
    ) -> None:
        """Set up; nothing is loaded yet.

        Args:
            tokenizer: of the base LLM; token ids of byte-pair vocabularies rise with rarity.
            embed_model: `None` is the default one.
            store: keeps the bits of sentences between runs.
        """
        self._tokenizer = tokenizer
        self._embed_model = embed_model
        self._store = store
        self._signs: OrderedDict[str, NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()
        self._dimension: int | None = None

    @property
    def embed_model(self) -> BaseEmbedding:
        """The embedding model; the default one is loaded when first asked for."""
        if self._embed_model is None:
            from ztok_rag.embedding import default_embedding

            self._embed_model = default_embedding()
        return self._embed_model

    def prepare(self, texts: Sequence[str]) -> None:
        """Embed the sentences of texts that are not known yet."""
        kind, width = self._kind()
        missing = []
        for text in dict.fromkeys(texts):
            if text in self._signs:
                continue
            data = self._store.get_bytes(kind, text) if self._store is not None else None
            if data is not None and len(data) == width * len(split_sentences(text)):
                self._remember(text, np.frombuffer(data, np.uint8).reshape(-1, width))
            else:
                missing.append(text)
        pieces = [text[a:b] for text in missing for a, b in split_sentences(text)]
        if not pieces:
            return
        vectors = np.asarray(self.embed_model.get_text_embedding_batch(pieces))
        signs, at = np.packbits(vectors > 0, axis=1), 0
        for text in missing:
            own = signs[at : at + len(split_sentences(text))]
            at += len(own)
            self._remember(text, own)
            if self._store is not None:
                self._store.put_bytes(kind, text, own.tobytes())

    def probabilities(self, question: str, texts: Sequence[str]) -> list[FloatArray]:
        """For each text, of each sentence, how likely the question is about it; all sum to 1."""
        return probabilities(self.evidence(question, texts))

    def evidence(self, question: str, texts: Sequence[str]) -> list[FloatArray]:
        """For each text, `[sentences, 2]`: cosine to the question, and share of its words held."""
        self.prepare(texts)
        query = np.asarray(self.embed_model.get_query_embedding(question))
        query = query / max(float(np.linalg.norm(query)), 1e-12)
        wanted = {_stem(word): self._rarity(word) for word in _WORD.findall(question.lower())}
        total = sum(wanted.values()) or 1.0
        found = []
        for text in texts:
            with self._lock:
                signs = self._signs.get(text)
            if signs is None:  # so many texts that the first are forgotten already
                self.prepare([text])
                signs = self._signs[text]
            bits = np.unpackbits(signs, axis=1, count=len(query))
            cosine = (2.0 * bits - 1.0) @ query / math.sqrt(len(query))
            held = [
                sum(wanted.get(stem, 0.0) for stem in _stems(text[a:b]))
                for a, b in split_sentences(text)
            ]
            found.append(np.stack([cosine, np.array(held) / total], axis=1))
        return found

    def stored_bytes(self, texts: Sequence[str]) -> int:
        """Bytes that are kept of the sentences of texts."""
        return sum(self._kind()[1] * len(split_sentences(text)) for text in texts)

    def _kind(self) -> tuple[str, int]:
        """What the store calls sentences of this embedding model, and bytes per sentence."""
        if self._dimension is None:
            self._dimension = len(self.embed_model.get_query_embedding("?"))
        name = Path(self.embed_model.model_name).name.replace(":", "-")
        return f"sentences-{name}-{self._dimension}", (self._dimension + 7) // 8

    def _remember(self, text: str, signs: NDArray[np.uint8]) -> None:
        with self._lock:
            self._signs[text] = signs
            while len(self._signs) > _MEMORY:
                self._signs.popitem(last=False)

    def _rarity(self, word: str) -> float:
        ids = self._tokenizer(" " + word, add_special_tokens=False, verbose=False)["input_ids"]
        return sum(max(0.0, math.log((1 + i) / _COMMON_IDS)) for i in ids)


def probabilities(
    evidence: Sequence[FloatArray],
    lexical_weight: float = LEXICAL_WEIGHT,
    text_weight: float = TEXT_WEIGHT,
    temperature: float = TEMPERATURE,
) -> list[FloatArray]:
    """Probabilities of sentences, from what `SentenceScorer.evidence` found of some texts."""
    own = [found @ np.array([1.0, lexical_weight]) for found in evidence]
    scores = [s + text_weight * s.max() for s in own]
    top = max(float(s.max()) for s in scores)
    weights = [np.exp((s - top) / temperature) for s in scores]
    mass = sum(float(w.sum()) for w in weights)
    return [w / mass for w in weights]


class QuestionFocus:
    """Composes the Z-tokens of texts for a question, out of those they have at all rates."""

    def __init__(self, compressor: ZCompressor, scorer: SentenceScorer, resolve: Resolve) -> None:
        """See the class.

        Args:
            compressor: of the sequences.
            scorer: finds what the question is about.
            resolve: gives texts' Z-tokens.
        """
        self.compressor = compressor
        self.scorer = scorer
        self._resolve = resolve

    @classmethod
    def over(
        cls, compressor: ZCompressor, store: ZStore, embed_model: BaseEmbedding | None = None
    ) -> QuestionFocus:
        """One whose sequences, and the bits of whose sentences, are kept in a store."""
        scorer = SentenceScorer(compressor.tokenizer, embed_model, store)
        return cls(compressor, scorer, partial(store.resolve, compressor))

    def prepare(self, texts: Sequence[str]) -> int:
        """Make what `compose` needs beside the question; the number of texts compressed."""
        self.scorer.prepare(texts)
        return self._resolve(texts)[1]

    def compose(
        self, question: str, texts: Sequence[str], rate: float, *, budget: int | None = None
    ) -> tuple[list[ZSequence], int]:
        """Z-tokens of texts for a question.

        Args:
            question: what will be asked.
            texts: retrieved for it; they share the Z-tokens.
            rate: source tokens per Z-token, over all texts.
            budget: Z-tokens in all, in place of the rate.

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
        sentences = [split_sentences(text) for text in texts]
        parts = [_Parts(*each) for each in zip(sentences, whole, nested, strict=True)]
        costs = {
            rate: np.concatenate([part.counts(rate) for part in parts])
            for rate in (1.0, *COMPOSED_RATES)
        }
        worth = np.concatenate(self.scorer.probabilities(question, texts))
        chosen = iter(allocate(worth, costs, budget))
        return [part.joined([next(chosen) for _ in part.sentences]) for part in parts], compressed


class _Parts:
    """The Z-tokens of one text's sentences at each rate."""

    def __init__(self, sentences: Sequence[Span], whole: ZSequence, nested: NestedSequence) -> None:
        """See the class.

        Args:
            sentences: of the text.
            whole: the text at rate 1.
            nested: the text at the other rates.
        """
        self.sentences = sentences
        self._whole = whole
        self._nested = nested
        self._owners_in_whole = self._owners(whole)
        self._owners_in_finest = self._owners(nested.finest)

    def _owners(self, z: ZSequence) -> IntArray:
        """The sentence of each Z-token: the one that the middle of its span lies in."""
        ends = np.array([end for _, end in self.sentences])
        owners: IntArray = np.searchsorted(ends[:-1], z.spans.mean(axis=1), side="right")
        return owners

    def _at(self, rate: float) -> tuple[ZSequence, IntArray]:
        """A sequence, and the sentence of each of its Z-tokens that are there at a rate, or -1."""
        if rate == 1:
            return self._whole, self._owners_in_whole
        kept = self._nested.kept(rate)
        return self._nested.finest, np.where(kept, self._owners_in_finest, -1)

    def counts(self, rate: float) -> IntArray:
        """`[n]` Z-tokens of each sentence at a rate."""
        return np.bincount(self._at(rate)[1] + 1, minlength=1 + len(self.sentences))[1:]

    def joined(self, rates: Sequence[float]) -> ZSequence:
        """The text's sequence with a rate of its own for each sentence."""
        there = {rate: self._at(rate) for rate in set(rates)}
        codes, spans = [], []
        for number, ((start, end), rate) in enumerate(zip(self.sentences, rates, strict=True)):
            z, owners = there[rate]
            own = owners == number
            firsts = z.spans[own, 0].clip(start, end)
            firsts[:1] = start
            codes.append(z.codes[own])
            spans.append(spans_from(firsts, end))
        if not sum(map(len, codes)):
            return self._nested.at(COMPOSED_RATES[-1])
        finest, joined = self._nested.finest, np.concatenate(spans)
        edges = finest.spans[np.cumsum([0, *finest.windows[:-1]]), 0]
        window = np.searchsorted(edges, joined[:, 0], side="right")
        return ZSequence(
            codes=np.concatenate(codes),
            spans=joined,
            windows=tuple(np.unique(window, return_counts=True)[1].tolist()),
            source_tokens=finest.source_tokens,
            fingerprint=finest.fingerprint,
        )


def allocate(
    worth: FloatArray, costs: Mapping[float, NDArray[np.int64]], budget: int
) -> list[float]:
    """A rate for each of `n` sentences, so that the most of what is asked for should be kept.

    All start at the highest rate; then the step that gains most per Z-token is taken as long as
    there is one that the budget pays for.

    Args:
        worth: `[n]` how likely each sentence is to be asked for.
        costs: `[n]` Z-tokens of each sentence, at each rate.
        budget: Z-tokens in all.
    """
    rates = sorted(costs, reverse=True)
    kept = [kept_share(rate) for rate in rates]
    table = np.stack([costs[rate] for rate in rates])
    place = np.zeros(len(worth), dtype=np.int64)
    left = budget - int(table[0].sum())
    each = np.arange(len(worth))
    while True:
        price = table - table[place, each]
        gain = worth * (np.array(kept)[:, None] - np.array(kept)[place])
        possible = (np.arange(len(rates))[:, None] > place) & (price <= left)
        ratio = np.where(possible, gain / np.maximum(price, 0.5), -1.0)
        best = int(ratio.argmax())
        if ratio.flat[best] < 0:
            return [rates[p] for p in place]
        step, sentence = divmod(best, len(worth))
        left -= int(price[step, sentence])
        place[sentence] = step


def kept_share(rate: float) -> float:
    """`KEPT` at any rate, linear in its logarithm."""
    known, shares = zip(*KEPT, strict=True)
    return float(np.interp(math.log(rate), np.log(known), shares))


@lru_cache(maxsize=1)
def _punkt() -> Any:
    from llama_index.core.utils import globals_helper
    from nltk.tokenize.punkt import PunktTokenizer

    globals_helper.wait_for_nltk_check()  # says where LlamaIndex keeps the model
    return PunktTokenizer("english")


@lru_cache(maxsize=50_000)
def _stem(word: str) -> str:
    return str(_stemmer().stem(word))


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    from nltk.stem import PorterStemmer

    return PorterStemmer()


def _stems(text: str) -> set[str]:
    return {_stem(word) for word in _WORD.findall(text.lower())}
