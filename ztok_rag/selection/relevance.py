"""Where in some texts the answer to a question may stand, told from their Z-tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ztok_rag.codec.nested import RATES, NestedSequence
from ztok_rag.codec.quantizer import normalize
from ztok_rag.selection.words import find_words, question_words

if TYPE_CHECKING:
    from ztok_rag.codec.model import ZModel
    from ztok_rag.codec.quantizer import ZQuantizer
    from ztok_rag.codec.sequence import ZSequence

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

_REACHES = (2, 6)
_PAIRS_AT_ONCE = 32


@dataclass(frozen=True)
class Source:
    """One text as `RelevanceModel` sees it, whatever the question.

    Attributes:
        ids: `[n]` its tokens.
        spans: `[n, 2]` characters `[start, end)` of each.
        residuals: `[n, dims]` what the residual codes say of the Z-token around each.
        lasts: `[n]` the share of all rates that have that Z-token, 0 to 1.
        words: stem, first token and last token of each word.
    """

    ids: IntArray
    spans: IntArray
    residuals: FloatArray
    lasts: FloatArray
    words: tuple[tuple[str, int, int], ...]

    @classmethod
    @torch.inference_mode()
    def of(
        cls, text: str, whole: ZSequence, nested: NestedSequence, quantizer: ZQuantizer
    ) -> Source:
        """See the class.

        Args:
            text: the text.
            whole: its Z-tokens at rate 1.
            nested: its Z-tokens at the other rates.
            quantizer: that made their codes.
        """
        finest, spans = nested.finest, whole.spans.astype(np.int64)
        owners = np.searchsorted(finest.spans[:, 0], spans[:, 0], side="right") - 1
        codes = torch.from_numpy(finest.codes[owners].astype(np.int64)).to(quantizer.scale.device)
        words = []
        for stem, start, end in find_words(text):
            first = int(np.searchsorted(spans[:, 1], start, side="right"))
            last = int(np.searchsorted(spans[:, 0], end, side="left")) - 1
            words.append((stem, first, max(first, last)))
        return cls(
            ids=whole.codes[:, 0].astype(np.int64),
            spans=spans,
            residuals=quantizer.residual_vectors(codes).float().cpu().numpy(),
            lasts=(nested.lasts[owners] / (len(RATES) - 1)).astype(np.float32),
            words=tuple(words),
        )


def score_pairs(model: ZModel, pairs: Sequence[tuple[str, Source]]) -> Tensor:
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
    logits: Tensor = model.relevance(
        normalize(base.embeddings(text_ids.to(device))),
        _stacked([source.residuals for _, source in pairs]).to(device),
        _stacked(hints).to(device),
        text_mask.to(device),
        normalize(base.embeddings(question_ids.to(device))),
        question_mask.to(device),
    )
    return logits


@torch.inference_mode()
def find_answers(model: ZModel, question: str, sources: Sequence[Source]) -> list[FloatArray]:
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


def question_hints(weights: Mapping[str, float], source: Source) -> FloatArray:
    """What a text's words say about a question.

    Args:
        weights: see `question_words`.
        source: the text.

    Returns:
        `[n, HINTS]`: whether the token is of a word of the question, with more weight than none;
        that weight; the weights around, nearer ones counting more, at a short and at a longer
        reach; and the token's `lasts`.
    """
    held = np.zeros(len(source.ids), dtype=np.float32)
    for word, first, last in source.words:
        held[first : last + 1] = weights.get(word, 0.0)
    around = [_around(held, reach) for reach in _REACHES]
    return np.stack([held > 0, held, *around, source.lasts], axis=1).astype(np.float32)


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
