"""Truncation: the text up to the budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ztok_rag.evaluation import JOIN, Shorten, cut_end


class Truncate(Shorten):
    """Keep the first whole words of the joined chunks."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, question: str, chunks: Sequence[str], budget: int) -> str:
        return cut_end(JOIN.join(chunks), budget, self.tokenizer)[0]
