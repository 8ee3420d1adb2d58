"""Drafts for speculative decoding: what followed the end of an answer where it stood before.

Prompt lookup decoding (Saxena 2023) needs no draft model: an answer that quotes goes on as its
source does. What is not found may be guessed by a write head (`ztok_rag.codec.chains`). The LLM
reads a draft in one pass and keeps what it would have written itself (Leviathan et al. 2022, arXiv
2211.17192, for greedy decoding).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from ztok_rag.errors import ZtokError

LOOKUP, HEAD, BOTH = "lookup", "head", "both"

Speculate = bool | Literal["lookup", "head", "both"] | None
"""Where drafts come from: `True` is what is quickest, `None` the same in float32."""

LONGEST_DRAFT = 15
"""Most tokens of a draft."""

_LONGEST_MATCH = 4
_PRIOR = (0.0, 0.4, 0.6, 0.7, 0.8)  # chance that a drafted token is right, by tokens matched
_PRIOR_WEIGHT = 2.0  # of the prior, in drafted tokens
_ALONE = 0.7  # time of a pass that reads one token, in those of the shortest that reads several
_TOKEN = 0.04  # time that each further token adds, likewise
_TRUST_WEIGHT = 2.0  # in guessed tokens that were right
_NOWHERE = -1


def drafts_by(speculate: bool | str) -> str:
    """The kind of drafts that a setting asks for; empty without.

    Raises:
        ZtokError: there is no such kind.
    """
    if isinstance(speculate, bool):
        return LOOKUP if speculate else ""
    if speculate not in (LOOKUP, HEAD, BOTH):
        raise ZtokError(
            f"speculate is True, False, {LOOKUP!r}, {HEAD!r} or {BOTH!r}, not {speculate!r}."
        )
    return speculate


@dataclass(frozen=True)
class Draft:
    """Tokens that may come next.

    Attributes:
        tokens: their ids.
        chances: of each, how likely it is right if those before are.
        matched: how many tokens at the answer's end led to it.
        is_guess: whether a write head wrote it, and it was not looked up.
    """

    tokens: Sequence[int] = ()
    chances: Sequence[float] = ()
    matched: int = 0
    is_guess: bool = False

    def __len__(self) -> int:
        return len(self.tokens)

    def cut(self, most: int) -> Draft:
        """The first tokens, at most so many."""
        if len(self) <= most:
            return self
        return Draft(self.tokens[:most], self.chances[:most], self.matched, self.is_guess)


class Drafter:
    """Looks up what may follow an answer, and learns how often that was right."""

    def __init__(self, known: Iterable[Sequence[int]]) -> None:
        """Index the texts that an answer may quote; the answer itself is added by `extend`.

        Args:
            known: token ids of each text; no draft goes on from one into the next.
        """
        self._ids: list[int] = []
        self._after: dict[int, list[int]] = {}  # token → the places that follow it
        for ids in known:
            self.extend([*ids, _NOWHERE])
        self._right = [chance * _PRIOR_WEIGHT for chance in _PRIOR]
        self._tried = [_PRIOR_WEIGHT] * len(_PRIOR)

    def extend(self, tokens: Sequence[int]) -> None:
        """Add tokens to the answer."""
        for token in tokens:
            self._ids.append(token)
            self._after.setdefault(token, []).append(len(self._ids))

    def draft(self) -> Draft:
        """What followed the longest end of the answer, of up to four tokens, that stood before.

        Where it stood several times and other tokens followed, there is no draft.
        """
        places: list[int] = []
        matched = 1
        for place in self._after.get(self._ids[-1], ())[:-1] if self._ids else ():
            length = self._match(place)
            if length >= matched and self._ids[place] != _NOWHERE:
                places = [*places, place] if length == matched else [place]
                matched = length
        if len({self._ids[place] for place in places}) != 1:
            return Draft()
        tokens = self._ids[places[0] : places[0] + LONGEST_DRAFT]
        if _NOWHERE in tokens:
            del tokens[tokens.index(_NOWHERE) :]
        levels = range(matched, matched + len(tokens))
        return Draft(tokens, [self._chance(level) for level in levels], matched)

    def learn(self, draft: Draft, right: int) -> None:
        """Note that the first `right` tokens of a draft were right, and the next was not."""
        for number in range(min(len(draft), right + 1)):
            level = min(draft.matched + number, _LONGEST_MATCH)
            self._tried[level] += 1
            self._right[level] += number < right

    def _match(self, place: int) -> int:
        """How many tokens before `place` are those at the answer's end; the last one is."""
        ids, end = self._ids, len(self._ids)
        length = 1
        while (
            length < min(_LONGEST_MATCH, place)
            and ids[place - 1 - length] == ids[end - 1 - length] != _NOWHERE
        ):
            length += 1
        return length

    def _chance(self, level: int) -> float:
        """How likely a token is right that was found by so many before it."""
        level = min(level, _LONGEST_MATCH)
        return self._right[level] / self._tried[level]


class Trust:
    """How much more often the guesses of one answer are right than is usual.

    Answers that are drawn towards what they quote go on in other ways than the LLM alone would.
    """

    def __init__(self) -> None:
        self._right = _TRUST_WEIGHT
        self._expected = _TRUST_WEIGHT

    @property
    def value(self) -> float:
        """1 where guesses are right as often as is usual."""
        return self._right / self._expected

    def learn(self, draft: Draft, right: int) -> None:
        """Note that the first `right` tokens of a guess were right, and the next was not."""
        for number in range(min(len(draft), right + 1)):
            self._expected += draft.chances[number]
            self._right += number < right

    def weigh(self, draft: Draft) -> Draft:
        """A guess with its chances as this answer's guesses have shown them to be."""
        if not draft.is_guess:
            return draft
        chances = [min(1.0, self.value * chance) for chance in draft.chances]
        return Draft(draft.tokens, chances, draft.matched, True)


def choose_width(drafts: Sequence[Draft]) -> int:
    """How many tokens of each row the next pass should read, so that tokens come fastest.

    Args:
        drafts: of each row.

    Returns:
        1, for the last token alone, to `1 + LONGEST_DRAFT`.
    """
    rows = len(drafts)
    width = 1
    best = 1 / _ALONE if rows == 1 else rows / (1 + _TOKEN * rows)
    written, still = float(rows), [1.0] * rows
    for place in range(max(map(len, drafts), default=0)):
        for row, draft in enumerate(drafts):
            still[row] *= draft.chances[place] if place < len(draft) else 0.0
        written += sum(still)
        speed = written / (1 + _TOKEN * rows * (place + 2))
        if speed > best:
            best, width = speed, place + 2
    return width
