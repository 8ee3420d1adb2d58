"""Where in some texts an answer may stand, by all that says so without running the LLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ztok_rag.codec.compressed_text import CompressedText
from ztok_rag.codec.sequence import IntArray
from ztok_rag.selection.relevance import PassageFeatures, find_answers
from ztok_rag.selection.sentences import FloatArray, SentenceScorer, split_sentences
from ztok_rag.selection.text_pieces import owners

if TYPE_CHECKING:
    from ztok_rag.codec.model import ZModel


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
        model: whose relevance model tells; without one, all tokens are alike.
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
    if scorer is None:
        return likely
    last = len(texts) - beside
    sentences = [
        owners(own.spans, split_sentences(t))
        for t, own in zip(texts[:last], tokens[:last], strict=True)
    ]
    told_apart = _combine(found[:last], scorer.probabilities(question, texts[:last]), sentences)
    mass = sum(float(own.sum()) for own in likely[:last])
    return [*(mass * own for own in told_apart), *likely[last:]]


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
