"""Where an answer stands in the texts whose Z-tokens it was read from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ztok_rag.codec.base import decode_exactly
from ztok_rag.codec.sequence import ZSequence

IntArray = NDArray[np.int64]

_REPLACEMENT = "\ufffd"


def locate(answer: str, sequences: Sequence[ZSequence], tokenizer: Any) -> list[dict[str, int]]:
    """Every place where an answer stands, word for word, in what sequences hold.

    White space matches any white space, and a full stop at the answer's end is left out where it
    does not match. Tokens that were left out between others end a match.

    Up to a rate of `slots` the places are exact. Above, some may be a few characters off.

    Args:
        answer: the text of an answer.
        sequences: in the order of the prompt.
        tokenizer: of the base LLM.

    Returns:
        In order, `{"handle", "start", "end"}`: index of the sequence, and half-open character
        range in its source text. Empty where the answer stands nowhere.
    """
    runs = [
        (number, text, offset)
        for number, z in enumerate(sequences)
        for text, offset in _held_runs(z, tokenizer)
    ]
    places = _search(answer, [text for _, text, _ in runs])
    return [
        {"handle": runs[run][0], "start": start + runs[run][2], "end": end + runs[run][2]}
        for run, start, end in places
    ]


def locate_in_text(answer: str, text: str) -> list[tuple[int, int]]:
    """Every place where an answer stands in a text, by the rules of `locate`."""
    return [(start, end) for _, start, end in _search(answer, [text])]


def _search(answer: str, texts: Sequence[str]) -> list[tuple[int, int, int]]:
    """Index of the text, start and end of each place where an answer stands."""
    words = answer.split()
    found = _search_words(words, texts)
    if not found and words and words[-1].rstrip(".") not in ("", words[-1]):
        found = _search_words([*words[:-1], words[-1].rstrip(".")], texts)
    return found


def _search_words(words: Sequence[str], texts: Sequence[str]) -> list[tuple[int, int, int]]:
    if not any(map(str.isalnum, "".join(words))):
        return []
    before = r"(?<!\w)" if re.match(r"\w", words[0]) else ""
    after = r"(?!\w)" if re.search(r"\w$", words[-1]) else ""
    pattern = re.compile(before + r"\s+".join(map(re.escape, words)) + after)
    return [
        (number, match.start(), match.end())
        for number, text in enumerate(texts)
        for match in pattern.finditer(text)
    ]


def _held_runs(z: ZSequence, tokenizer: Any) -> Iterator[tuple[str, int]]:
    """Text of each run of tokens without a gap, and the character of the source it begins at."""
    owner = np.repeat(np.arange(len(z)), z.sizes)
    first = np.cumsum(z.sizes) - z.sizes  # of each Z-token, among those that are held
    for held in z.runs:
        run, ids = range(len(z.places))[held], z.ids[held]
        text = decode_exactly(tokenizer, ids)
        begins = [place for place in run if first[owner[place]] == place]
        # A sequence's first span begins with the text, and its first token may come later.
        anchors = [p for p in begins if p > 0 or z.places[p] == 0] or begins
        if anchors:
            anchor = int(anchors[0])
            before = len(decode_exactly(tokenizer, ids[: anchor - run[0]]).rstrip(_REPLACEMENT))
            offset = int(z.spans[owner[anchor], 0]) - before
        else:  # amid a Z-token
            own = owner[run[0]]
            offset = int(z.spans[own, 0]) + _chars_before(z, own, first[own], run[0], tokenizer)
        yield text, offset


def _chars_before(z: ZSequence, own: int, first: int, place: int, tokenizer: Any) -> int:
    """About how many of a Z-token's characters stand before one of its tokens.

    Tokens between that were left out share out evenly the characters that are not held.
    """
    last = first + int(z.sizes[own])
    until = int(z.places[last]) if last < len(z.places) else z.source_tokens
    missing = until - int(z.places[first]) - (last - first)
    missing_before = int(z.places[place] - z.places[first]) - int(place - first)
    before = len(decode_exactly(tokenizer, z.ids[first:place]))
    unknown = int(z.spans[own, 1] - z.spans[own, 0]) - len(
        decode_exactly(tokenizer, z.ids[first:last])
    )
    return before + max(0, unknown) * missing_before // max(1, missing)
