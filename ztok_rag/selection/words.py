"""Words of questions: how much each says, and what it has in common with its inflections."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

_WORD = re.compile(r"\w+")
_COMMON_IDS = 200


def find_words(text: str) -> Iterator[tuple[str, int, int]]:
    """The stem of each word of a text, and its characters `[start, end)`."""
    for match in _WORD.finditer(text):
        yield stem(match.group().lower()), match.start(), match.end()


def question_words(question: str, tokenizer: Any) -> dict[str, float]:
    """Stems of a question's words, each with its share of them all: rare words have more.

    Args:
        question: the question.
        tokenizer: of the base LLM; token ids of byte-pair vocabularies rise with rarity.
    """
    words = _WORD.findall(question.lower())
    if not words:
        return {}
    spaced = [f" {word}" for word in words]
    encoded = tokenizer(spaced, add_special_tokens=False, verbose=False)["input_ids"]
    weights = {
        stem(word): sum(max(0.0, math.log((1 + i) / _COMMON_IDS)) for i in ids)
        for word, ids in zip(words, encoded, strict=True)
    }
    total = sum(weights.values()) or 1.0
    return {word: weight / total for word, weight in weights.items()}


@lru_cache(maxsize=50_000)
def stem(word: str) -> str:
    """What a word and its inflections have in common (Porter 1980)."""
    return str(_stemmer().stem(word))


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    from nltk.stem import PorterStemmer

    return PorterStemmer()
