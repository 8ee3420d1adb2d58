"""The selected parts of a text as plain text, for LLMs that cannot read Z-tokens.

Words and characters are whole, by the default boundaries of Unicode (UAX #29). Scripts without
spaces between words are cut between characters as their readers see them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import regex
from numpy.typing import NDArray

from ztok_rag.codec.sequence import IntArray, ZSequence

_ELLIPSIS = "…"
_BOUNDARY = regex.compile(r"(?V1w)\b")
_CHARACTER = regex.compile(r"\X")
_SAID = regex.compile(r"[\w\p{Extended_Pictographic}]")
_REACH = (0.5, 1.0, 0.5)  # of a word's weight that it and each of its neighbours get


class Word(NamedTuple):
    """A word, a sign, or the white space between: characters `[start, end)` of a text."""

    start: int
    end: int


def split_words(text: str) -> list[Word]:
    """Cut a text at the boundaries of words that are boundaries of characters, too."""
    characters = {match.start() for match in _CHARACTER.finditer(text)}
    inner = {match.start() for match in _BOUNDARY.finditer(text)} & characters
    edges = sorted({0, len(text), *inner})
    return [Word(a, b) for a, b in itertools.pairwise(edges)]


def selected_text(text: str, starts: IntArray, z: ZSequence) -> str:
    """What a sequence holds of its source text, in at most about as many tokens as Z-tokens.

    Where Z-tokens hold more than one token, the words are read that have Z-tokens to themselves
    or nearly so, are rare, or stand beside such words.

    Args:
        text: the source text.
        starts: `[n]` first character of each token of it.
        z: Z-tokens of it.

    Returns:
        The words in reading order, as they stand in the text, with an ellipsis wherever words were
        left out.
    """
    words = split_words(text)
    owners = _word_of_token(text, starts, words)
    costs = np.bincount(owners, minlength=len(words))
    held = np.zeros(len(words), bool)
    held[owners[z.places]] = True
    held &= np.array([bool(_SAID.search(text, *word)) for word in words], bool)
    if int(z.sizes.max()) > 1:
        weights = np.zeros(len(words))
        rarity = z.code.rarity[z.ids] / np.repeat(z.sizes, z.sizes)
        np.add.at(weights, owners[z.places], rarity)
        held = _heaviest(text, words, held, weights, costs, len(z))
    return _join(text, words, held)


def _word_of_token(text: str, starts: IntArray, words: Sequence[Word]) -> IntArray:
    """`[n]` the word of each token: that of its first character which is not white space."""
    ends = np.append(starts[1:], len(text))
    firsts = [
        a + len(text[a:b]) - len(text[a:b].lstrip()) if text[a:b].strip() else a
        for a, b in zip(starts.tolist(), ends.tolist(), strict=True)
    ]
    owners: IntArray = np.searchsorted([word.start for word in words], firsts, side="right") - 1
    return owners


def _heaviest(
    text: str,
    words: Sequence[Word],
    held: NDArray[np.bool_],
    weights: NDArray[np.float64],
    costs: IntArray,
    budget: int,
) -> NDArray[np.bool_]:
    """The heaviest of the words that are held; they and the ellipses take `budget` tokens."""
    own = np.flatnonzero(held)
    if not len(own):
        return held
    spread = np.convolve(weights[own], _REACH, "full")[1:-1]
    order = own[np.argsort(-spread, kind="stable")]
    few, many = 1, len(order)
    while few < many:
        count = (few + many + 1) // 2
        kept = np.zeros(len(words), bool)
        kept[order[:count]] = True
        runs = _runs(text, words, kept)
        spent = sum(int(costs[a:b].sum()) for a, b in runs) + len(runs) + 1
        few, many = (count, many) if spent <= budget else (few, count - 1)
    kept = np.zeros(len(words), bool)
    kept[order[:few]] = True
    return kept


def _runs(text: str, words: Sequence[Word], held: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Ranges `[first, last)` of words to show; signs and white space between two are shown."""
    runs: list[tuple[int, int]] = []
    for place in np.flatnonzero(held).tolist():
        if runs and not _SAID.search(text, words[runs[-1][1] - 1].end, words[place].start):
            runs[-1] = runs[-1][0], place + 1
        else:
            runs.append((place, place + 1))
    return runs


def _join(text: str, words: Sequence[Word], held: NDArray[np.bool_]) -> str:
    spans = [(words[a].start, words[b - 1].end) for a, b in _runs(text, words, held)]
    if not spans:
        return _ELLIPSIS
    shown = [text[a:b].strip() for a, b in spans]
    first, last = spans[0][0], spans[-1][1]
    if _SAID.search(text, 0, first):
        shown.insert(0, "")
    else:
        shown[0] = text[:first].lstrip() + shown[0]
    if _SAID.search(text, last):
        shown.append("")
    else:
        shown[-1] += text[last:].rstrip()
    return f" {_ELLIPSIS} ".join(shown).strip()
