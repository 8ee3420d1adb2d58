"""Query-aware selection: spend the budget on pieces likely to contain the answer.

No LLM is run for a question: pieces are scored by the checkpoint's relevance model and by an
embedding model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ztok_rag.codec.compressed_text import CompressedText
from ztok_rag.codec.sequence import ZSequence
from ztok_rag.inputs import as_list, repair_surrogates
from ztok_rag.selection.evidence import find_likely, read_closely
from ztok_rag.selection.sentences import FloatArray, SentenceScorer
from ztok_rag.selection.text_pieces import TextPieces, choose_pieces

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor
    from ztok_rag.selection.embedding import Embedder
    from ztok_rag.storage.store import ZStore

Resolve = Callable[[Sequence[str]], tuple[list[CompressedText], int]]
"""Maps texts to their compressed form, and to the number of texts that were compressed for it."""


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
        parts = [TextPieces(t, own) for t, own in zip(texts, compressed, strict=True)]
        scores = self._scores(question, texts, parts)
        return choose_pieces(parts, scores, budget, slots), made

    def scores(self, question: str, texts: Sequence[str]) -> list[FloatArray]:
        """Probability that each piece of each text holds the answer.

        Returns:
            For each text `[n_pieces]`, with the pieces of `split_pieces`. The sum over all texts
            is about 1.
        """
        question, texts = _repaired(question, texts)
        compressed, _ = self._resolve(texts)
        parts = [TextPieces(t, own) for t, own in zip(texts, compressed, strict=True)]
        return self._scores(question, texts, parts)

    def _scores(
        self, question: str, texts: Sequence[str], parts: Sequence[TextPieces]
    ) -> list[FloatArray]:
        tokens = [part.tokens for part in parts]
        model = self.compressor.model
        likely = find_likely(model, question, texts, tokens, self.scorer)
        likely = read_closely(model, question, texts, tokens, likely)
        return [part.scores(own) for part, own in zip(parts, likely, strict=True)]


def _repaired(question: str, texts: Sequence[str]) -> tuple[str, list[str]]:
    """Question and texts without half surrogate pairs, which no tokenizer takes."""
    repaired = [repair_surrogates(text, "a text") for text in as_list(texts, "texts")]
    return repair_surrogates(question, "the question"), repaired
