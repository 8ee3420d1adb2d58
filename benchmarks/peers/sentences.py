"""Best sentences: those whose embeddings are nearest to the question's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from peers.text import fill, similarities
from ztok_rag.evaluation import Shorten


class Sentences(Shorten):
    """Keep the sentences most similar to the question, in text order. The last one is cut to fit.

    This is LlamaIndex's `SentenceEmbeddingOptimizer`, with its sentence splitter and the default
    embedding model, extended to all chunks at once and to a token budget.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def _split(self) -> Callable[[str], list[str]]:
        from llama_index.core.node_parser.text.utils import split_by_sentence_tokenizer

        return split_by_sentence_tokenizer()

    def __call__(self, question: str, chunks: Sequence[str], budget: int) -> str:
        places = [
            (chunk, sentence.strip())
            for chunk, text in enumerate(chunks)
            for sentence in self._split(text)
            if sentence.strip()
        ]
        likeness = similarities(question, [sentence for _, sentence in places])
        return fill(np.argsort(-likeness, kind="stable").tolist(), places, budget, self.tokenizer)
