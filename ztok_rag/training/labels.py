"""Which parts of a passage its questions use: labels of the gate."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ztok_rag.training.passages import Passage

_WORD = re.compile(r"\w+")


def find_uses(
    passages: Sequence[Passage], *, common: float = 0.05
) -> list[NDArray[np.int8] | None]:
    """What the questions of each passage use of its text.

    An answer is marked where it stands; one that is not in the text word for word, by its words.
    A question marks its words. Words in more than a share `common` of the passages mark nothing.

    Returns:
        `[characters, 2]` of 0 or 1 for each passage: part of an answer, named by a question;
        `None` for a passage without questions.
    """
    words = [Counter(_WORD.findall(p.text.lower())) for p in passages]
    frequency = Counter(word for counts in words for word in counts)
    limit = max(2.0, common * len(passages))

    def mark(text: str, wanted: str, column: NDArray[np.int8]) -> None:
        names = {w for w in _WORD.findall(wanted.lower()) if frequency[w] <= limit}
        for match in _WORD.finditer(text):
            if match.group().lower() in names:
                column[match.start() : match.end()] = 1

    found: list[NDArray[np.int8] | None] = []
    for passage in passages:
        if not passage.questions:
            found.append(None)
            continue
        uses = np.zeros((len(passage.text), 2), dtype=np.int8)
        for question, answers in passage.questions:
            mark(passage.text, question, uses[:, 1])
            for answer in dict.fromkeys(answers):
                at = passage.text.find(answer)
                if at >= 0:
                    uses[at : at + len(answer), 0] = 1
                else:
                    mark(passage.text, answer, uses[:, 0])
        found.append(uses)
    return found


def by_token(
    uses: NDArray[np.int8] | None, offsets: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], ...] | None:
    """Uses of tokens, by their character offsets."""
    if uses is None:
        return None
    rows = (uses[a:b].max(axis=0, initial=0).tolist() for a, b in offsets)
    return tuple((answer, question) for answer, question in rows)
