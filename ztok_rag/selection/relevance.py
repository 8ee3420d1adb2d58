"""Where in some texts the answer to a question may stand, told from their Z-tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ztok_rag.codec.compressed_text import CompressedText
from ztok_rag.selection.words import find_words, question_words

if TYPE_CHECKING:
    from ztok_rag.codec.model import ZModel

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

_REACHES = (2, 6)
_PAIRS_AT_ONCE = 32
_RAREST = 11.0  # nats


@dataclass(frozen=True)
class PassageFeatures:
    """One text as the selector sees it, whatever the question.

    Attributes:
        ids: `[n]` its tokens.
        spans: `[n, 2]` characters `[start, end)` of each.
        rarity: `[n]` how rare each is, 0 to about 1.
        words: stem, first token and last token of each word.
    """

    ids: IntArray
    spans: IntArray
    rarity: FloatArray
    words: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, text: str, compressed: CompressedText) -> PassageFeatures:
        """The features of a text.

        Args:
            text: the text.
            compressed: its tokens, weighed or not.
        """
        spans = compressed.spans
        words = []
        for stem, start, end in find_words(text):
            first = int(np.searchsorted(spans[:, 1], start, side="right"))
            last = int(np.searchsorted(spans[:, 0], end, side="left")) - 1
            words.append((stem, first, max(first, last)))
        return cls(
            ids=compressed.ids,
            spans=spans,
            rarity=(compressed.code.rarity[compressed.ids] / _RAREST).astype(np.float32),
            words=tuple(words),
        )


def score_pairs(model: ZModel, pairs: Sequence[tuple[str, PassageFeatures]]) -> Tensor:
    """Logits `[pairs, n]` of the tokens of texts, each for the question beside it."""
    base = model.base
    questions = list(dict.fromkeys(question for question, _ in pairs))
    encoded = base.tokenizer(questions, add_special_tokens=False, verbose=False)["input_ids"]
    asked = dict(zip(questions, encoded, strict=True))
    text_ids, text_mask = _padded([source.ids for _, source in pairs])
    question_ids, question_mask = _padded([np.array(asked[q] or [0]) for q, _ in pairs])
    weights = {question: question_words(question, base.tokenizer) for question in questions}
    hints = [question_hints(weights[question], source) for question, source in pairs]
    device = base.device
    assert model.selector is not None
    logits: Tensor = model.selector(
        unit_norm(base.embeddings(text_ids.to(device))),
        _stacked(hints).to(device),
        text_mask.to(device),
        unit_norm(base.embeddings(question_ids.to(device))),
        question_mask.to(device),
    )
    return logits


@torch.inference_mode()
def find_answers(
    model: ZModel, question: str, sources: Sequence[PassageFeatures]
) -> list[FloatArray]:
    """For each text, of each token, how likely it is part of the answer; all sum to 1."""
    logits: list[FloatArray] = []
    for start in range(0, len(sources), _PAIRS_AT_ONCE):
        some = sources[start : start + _PAIRS_AT_ONCE]
        scored = score_pairs(model, [(question, source) for source in some]).cpu().numpy()
        logits += [row[: len(s.ids)] for row, s in zip(scored, some, strict=True)]
    top = max(float(row.max()) for row in logits)
    weights = [np.exp(row - top) for row in logits]
    mass = sum(float(row.sum()) for row in weights)
    return [row / mass for row in weights]


def question_hints(weights: Mapping[str, float], source: PassageFeatures) -> FloatArray:
    """What a text's words say about a question.

    Args:
        weights: see `question_words`.
        source: the text.

    Returns:
        `[n, HINTS]`: whether the token is of a word of the question, with more weight than none;
        that weight; the weights around, nearer ones counting more, at a short and at a longer
        reach; and how rare the token is.
    """
    held = np.zeros(len(source.ids), dtype=np.float32)
    for word, first, last in source.words:
        held[first : last + 1] = weights.get(word, 0.0)
    around = [_around(held, reach) for reach in _REACHES]
    return np.stack([held > 0, held, *around, source.rarity], axis=1).astype(np.float32)


def _around(values: FloatArray, reach: int) -> FloatArray:
    """Sums of the values around, which fall to 1/e over a distance of `reach`."""
    side = 3 * reach
    kernel = np.exp(-np.abs(np.arange(-side, side + 1)) / reach)
    summed: FloatArray = np.convolve(values, kernel, "full")[side : side + len(values)]
    return summed


def _padded(rows: Sequence[IntArray]) -> tuple[Tensor, Tensor]:
    """Token ids `[rows, longest]`, and a mask that is false at padding."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = nn.utils.rnn.pad_sequence([torch.from_numpy(r).long() for r in rows], batch_first=True)
    return ids, torch.arange(ids.shape[1]) < lengths.unsqueeze(1)


def _stacked(rows: Sequence[FloatArray]) -> Tensor:
    """Vectors of tokens, `[rows, longest, size]`, zero at padding."""
    return nn.utils.rnn.pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True)


def unit_norm(x: Tensor) -> Tensor:
    """Vectors in float32 with a root mean square of 1."""
    return nn.functional.rms_norm(x.float(), x.shape[-1:], eps=1e-6)
