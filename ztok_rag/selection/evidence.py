"""Where in some texts an answer may stand, by all that says so without running the LLM.

The relevance model, and the embeddings of sentences where a scorer is given, look at everything
and cost little. The checkpoint's finder reads the question beside the text, errs less and costs
more, so of long texts it reads the likely parts alone. It helps to choose the pieces that are
read. Answers are not drawn to where it looks, as that makes right answers no likelier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ztok_rag.codec.compressed_text import CompressedText
from ztok_rag.codec.sequence import IntArray
from ztok_rag.selection.finder import can_ask, find_chances
from ztok_rag.selection.relevance import PassageFeatures, find_answers
from ztok_rag.selection.sentences import FloatArray, SentenceScorer, split_sentences
from ztok_rag.selection.text_pieces import owners

if TYPE_CHECKING:
    from ztok_rag.codec.model import ZModel

MOST_READ = 768
"""Tokens that the finder reads of all texts together."""

_PART = 128  # tokens of a long text that are read or not
_LEAST = 1e-12  # probability
_FIRST = 0.5  # exponent of what is known before the finder reads
_FOUND = 0.8  # and of what it says; both were fitted on dev data


def find_likely(
    model: ZModel,
    question: str,
    texts: Sequence[str],
    tokens: Sequence[CompressedText],
    scorer: SentenceScorer | None = None,
    *,
    beside: int = 0,
) -> list[FloatArray]:
    """Probability that each token of each text is part of the answer.

    Args:
        model: whose relevance model tells; without it, all tokens are alike.
        question: the question.
        texts: the texts.
        tokens: the same texts, compressed, weighed or not.
        scorer: tells sentences apart, too; `None` leaves that out.
        beside: how many of the last texts it says nothing of.

    Returns:
        `[n_tokens]` for each text. The sum over all texts is 1.
    """
    if model.selector is None:
        total = sum(map(len, tokens))
        found = [np.full(len(own), 1 / total, np.float32) for own in tokens]
    else:
        features = [PassageFeatures.of(t, own) for t, own in zip(texts, tokens, strict=True)]
        found = find_answers(model, question, features)
    likely = [own.astype(np.float64) for own in found]
    if scorer is not None:
        last = len(texts) - beside
        sentences = [
            owners(own.spans, split_sentences(t))
            for t, own in zip(texts[:last], tokens[:last], strict=True)
        ]
        by_sentence = scorer.probabilities(question, texts[:last])
        mass = sum(float(own.sum()) for own in likely[:last])
        told_apart = _combine(found[:last], by_sentence, sentences)
        likely = [*(mass * own for own in told_apart), *likely[last:]]
    return likely


def read_closely(
    model: ZModel,
    question: str,
    texts: Sequence[str],
    tokens: Sequence[CompressedText],
    likely: Sequence[FloatArray],
) -> list[FloatArray]:
    """What `find_likely` says, together with what the checkpoint's finder reads.

    Args:
        model: whose finder reads; without one, nothing changes.
        question: the question; where it is longer than the finder reads, nothing changes.
        texts: the texts.
        tokens: the same texts, compressed, weighed or not.
        likely: of `find_likely`, `[n_tokens]` for each text.

    Returns:
        `[n_tokens]` for each text. The sum over all texts is that of `likely`.
    """
    if model.finder is None or not can_ask(model.finder, question):
        return list(likely)
    stretches = likely_stretches(likely, MOST_READ)
    parts = [(texts[number], tokens[number].spans[a:b]) for number, a, b in stretches]
    chances = find_chances(
        model.finder,
        question,
        [text[own[0, 0] : own[-1, 1]] for text, own in parts],
        [own - own[0, 0] for _, own in parts],
    )
    before = [likely[number][a:b] + _LEAST for number, a, b in stretches]
    both = [a**_FIRST * b**_FOUND for a, b in zip(before, chances, strict=True)]
    # What is not read stays as likely as it was.
    scale = sum(float(own.sum()) for own in before) / sum(float(own.sum()) for own in both)
    mixed = [own.copy() for own in likely]
    for (number, a, b), own in zip(stretches, both, strict=True):
        mixed[number][a:b] = scale * own
    return mixed


def _combine(
    by_token: Sequence[NDArray[np.float32]],
    by_sentence: Sequence[FloatArray],
    sentences: Sequence[IntArray],
) -> list[FloatArray]:
    """Probability that each token of each text is part of the answer.

    It is the product of the selector's probability and that of the token's sentence.

    Args:
        by_token: of the relevance model, `[n_tokens]` for each text.
        by_sentence: of `SentenceScorer`, `[n_sentences]` for each text.
        sentences: the sentence of each token, `[n_tokens]` for each text.

    Returns:
        `[n_tokens]` for each text. The sum over all texts is 1.
    """
    found = []
    for token, sentence, own in zip(by_token, by_sentence, sentences, strict=True):
        each = sentence / np.maximum(1, np.bincount(own, minlength=len(sentence)))
        found.append(token.astype(np.float64) * each[own])
    mass = sum(float(own.sum()) for own in found) or 1.0
    return [own / mass for own in found]


def likely_stretches(likely: Sequence[FloatArray], most: int) -> list[tuple[int, int, int]]:
    """The likely parts of some texts.

    Args:
        likely: probability that each token of each text is part of the answer.
        most: tokens of all parts, about; texts that have no more are taken whole.

    Returns:
        The number of a text, and its tokens `[start, end)`, in order; none of them is empty.
    """
    if sum(map(len, likely)) <= most:
        return [(number, 0, len(own)) for number, own in enumerate(likely) if len(own)]
    parts = [
        (float(own[start : start + _PART].sum()), number, start)
        for number, own in enumerate(likely)
        for start in range(0, len(own), _PART)
    ]
    parts.sort(key=lambda part: -part[0])
    stretches: list[tuple[int, int, int]] = []
    for _, number, start in sorted(parts[: most // _PART], key=lambda part: part[1:]):
        end = min(start + _PART, len(likely[number]))
        if stretches and stretches[-1][0] == number and stretches[-1][2] == start:
            start = stretches.pop()[1]
        stretches.append((number, start, end))
    return stretches
