"""Fewer chunks: the highest-ranked ones that fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from peers.text import count, similarities
from ztok_rag.evaluation import JOIN, Shorten, cut_end


class FewerChunks(Shorten):
    """Keep as many of the highest-ranked chunks as fit whole, in the order given.

    If not even the best chunk fits, keep its first whole words.
    """

    def __init__(self, tokenizer: Any, *, best_first: bool) -> None:
        self.tokenizer = tokenizer
        self.best_first = best_first

    def __call__(self, question: str, chunks: Sequence[str], budget: int) -> str:
        order = list(range(len(chunks)))
        if not self.best_first and len(chunks) > 1:
            order = np.argsort(-similarities(question, chunks), kind="stable").tolist()
        kept = ""
        for n in range(1, len(chunks) + 1):
            longer = JOIN.join(chunks[i] for i in sorted(order[:n]))
            if count(self.tokenizer, longer) > budget:
                break
            kept = longer
        return kept or cut_end(chunks[order[0]], budget, self.tokenizer)[0]
