"""Where answers stand in a text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence


def find_matches(text: str, answers: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Characters `[start, end)` of each place where one of the answers stands word for word."""
    for answer in dict.fromkeys(answer.strip() for answer in answers):
        if answer:
            for match in re.finditer(re.escape(answer), text):
                yield match.span()


def first_place(text: str, answer: str, offsets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Tokens `[start, end)` of the first place where an answer stands; `(-1, -1)` without one.

    Args:
        text: the passage.
        answer: one character alone is looked for nowhere: it is found everywhere.
        offsets: characters `[start, end)` of each token.
    """
    at = text.find(answer) if len(answer) > 1 else -1
    if at < 0:
        return -1, -1
    inside = [i for i, (a, b) in enumerate(offsets) if b > at and a < at + len(answer)]
    return (inside[0], inside[-1] + 1) if inside else (-1, -1)
