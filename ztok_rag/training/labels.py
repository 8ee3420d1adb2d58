"""Where answers stand in a text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ztok_rag.selection.words import find_words

_SAID = 0.6  # least F1, and least share of an answer's words
_LONGER = 1.6  # times as many words as the answer may say it
_COMMON_WORDS = (
    "a an and are as at be been by for from had has have he her him his in is it its not of on or "
    "she that the their them they this to was were with"
)
_COMMON = frozenset(word for word, _, _ in find_words(_COMMON_WORDS))  # stems


def find_matches(text: str, answers: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Characters `[start, end)` of each place where one of the answers stands word for word."""
    for answer in dict.fromkeys(answer.strip() for answer in answers):
        if answer:
            for match in re.finditer(re.escape(answer), text):
                yield match.span()


def first_place(text: str, answer: str, spans: NDArray[np.int64]) -> tuple[int, int]:
    """Tokens `[start, end)` of the first place where an answer stands; `(-1, -1)` without one.

    Args:
        text: the passage.
        answer: one character alone is looked for nowhere: it is found everywhere.
        spans: characters `[start, end)` of each token, `[n, 2]`.
    """
    at = text.find(answer) if len(answer) > 1 else -1
    if at < 0:
        return -1, -1
    inside = np.flatnonzero((spans[:, 1] > at) & (spans[:, 0] < at + len(answer)))
    return (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (-1, -1)


def find_paraphrase(text: str, answers: Sequence[str]) -> tuple[int, int] | None:
    """Where a text says most of an answer in its own words, or else `None`.

    It is the stretch whose stems have the best F1 with those of an answer. It holds at least
    `_SAID` of them, and common words do not count.

    Returns:
        Characters `[start, end)`.
    """
    words = list(find_words(text))
    best, found = _SAID, None
    for answer in answers:
        asked = [stem for stem, _, _ in find_words(answer)]
        wanted = set(asked) - _COMMON
        longest = max(3, round(_LONGER * len(asked)))
        for first, (stem, start, _) in enumerate(words):
            if stem not in wanted:
                continue
            said: set[str] = set()
            counted = 0
            for other, _, end in words[first : first + longest]:
                counted += other not in _COMMON
                if other not in wanted:
                    continue
                said.add(other)
                f1 = 2 * len(said) / (counted + len(wanted))
                if len(said) >= _SAID * len(wanted) and f1 > best:
                    best, found = f1, (start, end)
    return found
