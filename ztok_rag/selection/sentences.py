"""Scores sentences of texts for a question, by its words and an embedding model."""

from __future__ import annotations

import math
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import regex
from numpy.typing import NDArray

from ztok_rag.forks import ForkSafeLock
from ztok_rag.selection.embedding import Embedder, default_embedder
from ztok_rag.selection.words import find_words, question_words
from ztok_rag.selection.wrapped_lines import find_wraps

if TYPE_CHECKING:
    from ztok_rag.storage.store import ZStore

Span = tuple[int, int]
FloatArray = NDArray[np.float64]
LEXICAL_WEIGHT = 0.5
"""Weight of the question's words that a sentence holds; its cosine to the question weighs 1."""

TEXT_WEIGHT = 1.0
"""Weight of the best sentence of a text in the scores of all sentences of that text."""

TEMPERATURE = 0.15
"""Temperature of the softmax over scores. All three numbers were fitted on dev data."""

BITS = 56
"""Bits that are kept of a sentence's embedding: signs of projections onto random directions
(Charikar 2002), the same on every machine."""

_CHECKSUM_BYTES = 4
_MEMORY = 4096  # texts whose sentences are kept in memory
_SHRINK = 0.8  # signs overstate a cosine by about this
# Lines, and sentences in scripts whose full stop is not "."; the closing signs stay with them.
_ENDS = regex.compile(r"\n+|[\p{Sentence_Terminal}--[.!?]]+[\p{Pe}\p{Pf}\"']*\s*", regex.V1)
_NLTK_DATA = "llama_index/core/_static/nltk_cache"


@lru_cache(maxsize=_MEMORY)
def split_sentences(text: str) -> tuple[Span, ...]:
    """Cut a text at the ends of its sentences and lines, in any script that marks them.

    Lines of text that was wrapped to a width do not end a sentence.

    Returns:
        Character ranges `[start, end)`, in order and without gaps.
    """
    starts, wraps = [0], find_wraps(text)
    for a, b in _punkt().span_tokenize(text):
        starts.append(a)
        starts += [m.end() for m in _ENDS.finditer(text, a, b) if m.start() not in wraps]
    starts = sorted(set(starts))
    return tuple((a, b) for a, b in zip(starts, [*starts[1:], len(text)], strict=True) if a < b)


class SentenceScorer:
    """Gives each sentence of some texts a probability of holding what a question asks for.

    A sentence scores by its cosine to the question in an embedding space, and by the weight of the
    question's words that it holds. The best score of a text is added to all its sentences. Of a
    sentence's embedding, `BITS` bits are kept.
    """

    def __init__(
        self,
        tokenizer: Any,
        embed_model: Embedder | None = None,
        store: ZStore | None = None,
    ) -> None:
        """Set up; nothing is loaded yet.

        Args:
            tokenizer: of the base LLM.
            embed_model: `None` is the default one.
            store: keeps the embeddings of sentences; `None` keeps them in memory only.
        """
        self._tokenizer = tokenizer
        self._embed_model = embed_model
        self._store = store
        self._signs: OrderedDict[str, NDArray[np.uint8]] = OrderedDict()
        self._lock = ForkSafeLock()
        self._dimension: int | None = None

    @property
    def embed_model(self) -> Embedder:
        """The embedding model; the default one is loaded when first asked for."""
        if self._embed_model is None:
            self._embed_model = default_embedder()
        return self._embed_model

    def prepare(self, texts: Sequence[str]) -> None:
        """Embed the sentences of texts that are neither in memory nor in the store."""
        kind, width = self._kind()
        missing = []
        new = [text for text in dict.fromkeys(texts) if text not in self._signs]
        kept = self._store.get_bytes_many(kind, new) if self._store is not None and new else {}
        for text in new:
            signs = _unpacked(text, kept[text], width) if text in kept else None
            if signs is not None:
                self._remember(text, signs)
            else:
                missing.append(text)
        pieces = [text[a:b] for text in missing for a, b in split_sentences(text)]
        if not pieces:
            return
        vectors = np.asarray(self.embed_model.get_text_embedding_batch(pieces))
        signs, at = np.packbits(vectors @ _directions(vectors.shape[1]) > 0, axis=1), 0
        made: dict[str, bytes] = {}
        for text in missing:
            own = signs[at : at + len(split_sentences(text))]
            at += len(own)
            self._remember(text, own)
            made[text] = _packed(text, own)
        if self._store is not None:
            self._store.put_bytes_many(kind, made)

    def probabilities(self, question: str, texts: Sequence[str]) -> list[FloatArray]:
        """Probability that each sentence holds what is asked for.

        Returns:
            `[n_sentences]` for each text. The sum over all texts is 1.
        """
        return probabilities(self.evidence(question, texts))

    def evidence(self, question: str, texts: Sequence[str]) -> list[FloatArray]:
        """What sentences are scored by.

        Returns:
            `[n_sentences, 2]` for each text: cosine to the question, and weight of the question's
            words that the sentence holds, 0 to 1.
        """
        self.prepare(texts)
        query = np.asarray(self.embed_model.get_query_embedding(question))
        query = query / max(float(np.linalg.norm(query)), 1e-12)
        asked = query @ _directions(len(query))
        wanted = question_words(question, self._tokenizer)
        found = []
        for text in texts:
            with self._lock:
                signs = self._signs.get(text)
            if signs is None:  # more than `_MEMORY` texts
                self.prepare([text])
                signs = self._signs[text]
            bits = np.unpackbits(signs, axis=1, count=BITS)
            cosine = (2.0 * bits - 1.0) @ asked / math.sqrt(BITS)
            held = [
                sum(wanted.get(stem, 0.0) for stem in {word[0] for word in find_words(text[a:b])})
                for a, b in split_sentences(text)
            ]
            found.append(np.stack([cosine, np.array(held)], axis=1))
        return found

    def stored_bytes(self, texts: Sequence[str]) -> int:
        """Bytes of the kept embeddings of the sentences of texts."""
        width = self._kind()[1]
        return sum(_CHECKSUM_BYTES + width * len(split_sentences(text)) for text in texts)

    def _kind(self) -> tuple[str, int]:
        """Name of this model's embeddings in the store, and bytes per sentence."""
        if self._dimension is None:
            self._dimension = len(self.embed_model.get_query_embedding("?"))
        name = Path(self.embed_model.model_name).name.replace(":", "-")
        return f"sentences-{name}-{self._dimension}-{BITS}", BITS // 8

    def _remember(self, text: str, signs: NDArray[np.uint8]) -> None:
        with self._lock:
            self._signs[text] = signs
            while len(self._signs) > _MEMORY:
                self._signs.popitem(last=False)


def _packed(text: str, signs: NDArray[np.uint8]) -> bytes:
    """The bytes of a text's sentence embeddings, with a checksum that depends on the text."""
    data = signs.tobytes()
    return _checksum(text, data) + data


def _unpacked(text: str, data: bytes, width: int) -> NDArray[np.uint8] | None:
    """Inverse of `_packed`, `[n_sentences, width]`; `None` if it is damaged or of another text."""
    checksum, own = data[:_CHECKSUM_BYTES], data[_CHECKSUM_BYTES:]
    if len(own) != width * len(split_sentences(text)) or checksum != _checksum(text, own):
        return None
    return np.frombuffer(own, np.uint8).reshape(-1, width)


def _checksum(text: str, data: bytes) -> bytes:
    of_text = zlib.crc32(text.encode("utf-8", "surrogatepass"))
    return zlib.crc32(data, of_text).to_bytes(_CHECKSUM_BYTES, "little")


def probabilities(
    evidence: Sequence[FloatArray],
    lexical_weight: float = LEXICAL_WEIGHT,
    text_weight: float = TEXT_WEIGHT,
    temperature: float = TEMPERATURE,
) -> list[FloatArray]:
    """Softmax of the scores of sentences.

    Args:
        evidence: as from `SentenceScorer.evidence`.
        lexical_weight: as `LEXICAL_WEIGHT`.
        text_weight: as `TEXT_WEIGHT`.
        temperature: as `TEMPERATURE`.

    Returns:
        `[n_sentences]` for each text. The sum over all texts is 1.
    """
    own = [found @ np.array([1.0, lexical_weight]) for found in evidence]
    scores = [s + text_weight * s.max() for s in own]
    top = max(float(s.max()) for s in scores)
    weights = [np.exp((s - top) / temperature) for s in scores]
    mass = sum(float(w.sum()) for w in weights)
    return [w / mass for w in weights]


@lru_cache(maxsize=8)
def _directions(dimension: int) -> FloatArray:
    """`[dimension, BITS]` random directions; orthogonal where there are not more than dimensions.

    Their lengths keep the scale of a cosine.
    """
    drawn = np.random.default_rng(0).standard_normal((dimension, BITS))
    if dimension >= BITS:
        drawn = np.linalg.qr(drawn)[0]
    directions: FloatArray = drawn * math.sqrt(dimension / BITS) * _SHRINK
    return directions


@lru_cache(maxsize=1)
def _punkt() -> Any:
    import nltk
    from nltk.tokenize.punkt import PunktTokenizer

    try:
        return PunktTokenizer("english")
    except LookupError:
        # llama-index-core ships the model's files; none of its code is imported.
        nltk.data.path.append(str(distribution("llama-index-core").locate_file(_NLTK_DATA)))
        return PunktTokenizer("english")
