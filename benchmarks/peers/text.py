"""What peers share: counting tokens, ranking texts, and joining what is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embed import embed_queries, embed_texts
from ztok_rag.evaluation import JOIN, cut_end


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text."""
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)
    return encoded["input_ids"]  # type: ignore[no-any-return]


def count(tokenizer: Any, text: str) -> int:
    """Tokens of a text."""
    return len(tokenizer.encode(text, add_special_tokens=False, verbose=False))


def similarities(question: str, texts: Sequence[str]) -> NDArray[np.float32]:
    """Cosine similarity `[n]` of each text to the question, by the default embedding model."""
    if not texts:
        return np.zeros(0, np.float32)
    return np.asarray(embed_texts(texts) @ embed_queries([question])[0])


def in_order(kept: Mapping[int, str], places: Sequence[tuple[int, str]]) -> str:
    """The kept pieces in text order, with one space between pieces and `JOIN` between chunks.

    Args:
        kept: text of a piece, by its index in `places`.
        places: chunk number and text of every piece.
    """
    by_chunk: dict[int, list[str]] = {}
    for i in sorted(kept):
        by_chunk.setdefault(places[i][0], []).append(kept[i])
    return JOIN.join(" ".join(pieces) for pieces in by_chunk.values())


def fill(
    order: Sequence[int], places: Sequence[tuple[int, str]], budget: int, tokenizer: Any
) -> str:
    """The best pieces that fit the budget, in text order. The last one is cut to fit.

    Args:
        order: indices into `places`, the best first.
        places: chunk number and text of every piece.
        budget: most tokens.
        tokenizer: counts them.
    """
    kept: dict[int, str] = {}
    for best in order:
        longer = {**kept, best: places[best][1]}
        if count(tokenizer, in_order(longer, places)) <= budget:
            kept = longer
            continue
        room = budget - count(tokenizer, in_order(kept, places))
        while room > 0:
            longer[best] = cut_end(places[best][1], room, tokenizer)[0]
            if (
                kept
                and longer[best].split() != places[best][1].split()[: len(longer[best].split())]
            ):
                break  # not even its first word fits
            over = count(tokenizer, in_order(longer, places)) - budget
            if over <= 0:
                return in_order(longer, places)
            room -= over
        break
    return in_order(kept, places)
