"""Where in some texts the answer to a question may stand, told by the checkpoint's finder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ztok_rag.codec.base import tokenize_exactly
from ztok_rag.codec.finder import LONGEST_QUESTION, WINDOW, AnswerFinder

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

_STRIDE = 160
"""Tokens after which the next window begins."""

_AT_ONCE = 8
_LEAST = -20.0  # nats


def encode_questions(tokenizer: Any, questions: Sequence[str]) -> list[IntArray]:
    """The first `LONGEST_QUESTION` tokens of questions."""
    return [own.ids[:LONGEST_QUESTION] for own in tokenize_exactly(tokenizer, questions)]


def can_ask(finder: AnswerFinder, question: str) -> bool:
    """Whether a question is of at most `LONGEST_QUESTION` tokens, as those of the training are.

    What is longer is seldom one question, but a passage to be found or a prompt with examples.
    """
    (asked,) = tokenize_exactly(finder.tokenizer, [question])
    return len(asked.ids) <= LONGEST_QUESTION


@torch.inference_mode()
def find_odds(
    finder: AnswerFinder, question: str, texts: Sequence[str]
) -> list[tuple[IntArray, FloatArray]]:
    """How likely the tokens of texts are part of the answer.

    Long texts are read in windows that overlap; the higher odds of two count.

    Returns:
        Of each text the characters `[n, 2]` of the encoder's tokens, and `[n]` the logarithm of
        their odds against that the text around them does not answer.
    """
    (asked,) = encode_questions(finder.tokenizer, [question])
    read = tokenize_exactly(finder.tokenizer, texts)
    windows = [
        (number, start)
        for number, own in enumerate(read)
        for start in range(0, max(1, len(own.ids) - WINDOW + _STRIDE), _STRIDE)
    ]
    windows.sort(key=lambda window: len(read[window[0]].ids[window[1] :][:WINDOW]))
    odds = [np.full(len(own.ids), -np.inf) for own in read]
    for first in range(0, len(windows), _AT_ONCE):
        some = windows[first : first + _AT_ONCE]
        rows = [(asked, read[number].ids[start : start + WINDOW]) for number, start in some]
        for (number, start), logits in zip(some, finder(rows), strict=True):
            found = (logits[1:] - logits[0]).cpu().double().numpy()
            own = odds[number][start : start + WINDOW]
            np.maximum(own, found, out=own)
    return [(own.spans, of) for own, of in zip(read, odds, strict=True)]


def find_chances(
    finder: AnswerFinder, question: str, texts: Sequence[str], spans: Sequence[IntArray]
) -> list[FloatArray]:
    """How likely each token of each text is part of the answer, for tokens of another tokenizer.

    Args:
        finder: that reads.
        question: the question.
        texts: the texts.
        spans: `[n, 2]` characters of the tokens of each.

    Returns:
        `[n]` for each text, more than 0. The sum over all texts is 1.
    """
    odds = find_odds(finder, question, texts)
    top = max((float(own.max()) for _, own in odds if len(own)), default=0.0)
    chances = [
        _moved(own_spans, np.exp(np.maximum(own - top, _LEAST)), wanted)
        for (own_spans, own), wanted in zip(odds, spans, strict=True)
    ]
    floor = np.exp(_LEAST)
    mass = sum(float((own + floor).sum()) for own in chances)
    return [(own + floor) / mass for own in chances]


def _moved(spans: IntArray, weights: FloatArray, wanted: IntArray) -> FloatArray:
    """Weights of spans `[n, 2]` of a text as those of other spans `[m, 2]`, by characters."""
    end = int(max(spans.max(initial=0), wanted.max(initial=0)))
    lengths = np.maximum(1, spans[:, 1] - spans[:, 0])
    steps = np.zeros(end + 1)
    np.add.at(steps, spans[:, 0], weights / lengths)
    np.add.at(steps, spans[:, 0] + lengths, -weights / lengths)
    before = np.concatenate([[0.0], np.cumsum(np.maximum(0.0, np.cumsum(steps)[:-1]))])
    moved: FloatArray = before[wanted[:, 1]] - before[wanted[:, 0]]
    return np.maximum(0.0, moved)
