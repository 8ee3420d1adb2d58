"""Words of questions and texts: their stems, and the weight of each word of a question."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import regex

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}"
_COMPLEX = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_WORD = regex.compile(rf"[{_UNSPACED}]|[\w--[{_UNSPACED}]]+", regex.V1)
# About a word of characters as readers see them (UAX #29), in scripts with and without spaces.
_STRETCH = regex.compile(
    rf"(?:(?=[{_UNSPACED}])\X){{1,2}}|(?:(?=[{_COMPLEX}])\X){{1,4}}"
    rf"|(?:(?![\s{_UNSPACED}{_COMPLEX}])\X){{1,24}}"
)
_COMMON_IDS = 200  # token ids below this weigh nothing


def find_words(text: str) -> Iterator[tuple[str, int, int]]:
    """Each word of a text: its stem, and its character range `[start, end)`.

    Chinese and Japanese have no spaces between words; there, each character is one.
    """
    for match in _WORD.finditer(text):
        yield stem(match.group().lower()), match.start(), match.end()


def word_starts(text: str, start: int, end: int) -> list[int]:
    """Where words begin within `[start, end)` of a text, the signs beside them included.

    Scripts without spaces are cut into as many characters as a word has on average, and so is
    anything longer than words are.
    """
    return [match.start() for match in _STRETCH.finditer(text, start, end)]


@lru_cache(maxsize=64)
def question_words(question: str, tokenizer: Any) -> Mapping[str, float]:
    """Weights of a question's words, by their stems; they sum to 1, and rare words weigh more.

    Args:
        question: the question.
        tokenizer: of the base LLM. A byte-pair vocabulary lists frequent tokens first, so the
            logarithm of a token's id stands for its rarity.
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
    """The stem of a word (Porter 1980), which its inflections share."""
    return str(_stemmer().stem(word))


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    from nltk.stem import PorterStemmer

    return PorterStemmer()
