"""The query-aware selection of Z-tokens, read as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from peers.text import fill
from ztok_rag.evaluation import Shorten
from ztok_rag.selection.query_aware import QueryAwareSelector, resolve_in_memory
from ztok_rag.selection.sentences import SentenceScorer
from ztok_rag.selection.text_pieces import split_pieces

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor


class Pieces(Shorten):
    """Keep the pieces of text that `QueryAwareSelector` scores highest, in text order.

    The last piece is cut to fit. This arm shares our selection and reads text, so it tells what
    selection is worth without Z-tokens.
    """

    def __init__(self, compressor: ZCompressor) -> None:
        self.tokenizer = compressor.tokenizer
        scorer = SentenceScorer(compressor.tokenizer)
        self.focus = QueryAwareSelector(compressor, scorer, resolve_in_memory(compressor))

    def prepare(self, chunks: Sequence[str]) -> None:
        self.focus.prepare(chunks)

    def stored_bytes(self, chunks: Sequence[str]) -> int:
        """Bytes of the text, and of the Z-tokens and sentence embeddings that selection needs."""
        return super().stored_bytes(chunks) + self.focus.stored_bytes(chunks)

    def __call__(self, question: str, chunks: Sequence[str], budget: int) -> str:
        places = [
            (i, text[a:b].strip()) for i, text in enumerate(chunks) for a, b in split_pieces(text)
        ]
        scores = np.concatenate(self.focus.scores(question, chunks))
        order = [i for i in np.argsort(-scores, kind="stable").tolist() if places[i][1]]
        return fill(order, places, budget, self.tokenizer)
