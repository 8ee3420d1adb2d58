"""Questions that need no author: a sentence of the text with some words left out."""

from __future__ import annotations

import re

import numpy as np

BLANK = "____"

_SENTENCE = re.compile(r"[^\s.!?][^\n]*?(?:[.!?]+(?=\s|$)|(?=\n|$))")
_NAME = re.compile(r"(?<=[a-z,;] )[A-Z][\w'-]*(?: (?:(?:of|the|de|and) )?[A-Z][\w'-]*)*")
_NUMBER = re.compile(r"\b\d[\d,.]*\d\b|\b\d\b")
_WORDS = re.compile(r"\b[a-z]{6,}(?: [a-z]{4,})?\b")
_CONTEXT_WORDS = 24
_FEWEST_WORDS = 5


def cloze(text: str, rng: np.random.Generator) -> tuple[str, str] | None:
    """A question that shows a sentence with a blank, and the words that belong there.

    Names and numbers are left out rather than other words, where the text has any.

    Returns:
        Question and answer; `None` where there are no words to leave out.
    """
    facts: list[tuple[str, int, int]] = []
    words: list[tuple[str, int, int]] = []
    for match in _SENTENCE.finditer(text):
        sentence = match.group()
        if len(sentence.split()) < _FEWEST_WORDS:
            continue
        for pattern, found in ((_NAME, facts), (_NUMBER, facts), (_WORDS, words)):
            found += [(sentence, *m.span()) for m in pattern.finditer(sentence)]
    spans = facts if facts and (not words or rng.random() < 0.8) else words
    if not spans:
        return None
    sentence, start, end = spans[int(rng.integers(len(spans)))]
    before = sentence[:start].split(" ")[-_CONTEXT_WORDS:]
    after = sentence[end:].split(" ")[:_CONTEXT_WORDS]
    shown = f"{' '.join(before)}{BLANK}{' '.join(after)}"
    return f'Which words are missing in "{shown}"?', sentence[start:end]
