"""Where in some texts the answer to a question may stand, told from their Z-tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
_AT_ONCE = 24
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


def score_pairs(model: ZModel, pairs: Sequence[tuple[str, PassageFeatures]]) -> list[Tensor]:
    """Logits `[n]` of the tokens of each text, for the question beside it.

    A text or question of several pairs is encoded once, and like lengths are read together.
    """
    selector, device = model.selector, model.base.device
    assert selector is not None
    questions = list(dict.fromkeys(question for question, _ in pairs))
    sources = {id(source): source for _, source in pairs}
    texts = dict(zip(sources, _encode(model, [s.ids for s in sources.values()]), strict=True))
    asked = dict(zip(questions, _encode(model, _question_ids(model, questions)), strict=True))
    weights = {question: question_words(question, model.base.tokenizer) for question in questions}
    logits: dict[int, Tensor] = {}
    for some in _by_length([len(source.ids) for _, source in pairs]):
        text, text_mask = _padded([texts[id(pairs[i][1])] for i in some])
        question, question_mask = _padded([asked[pairs[i][0]] for i in some])
        hints = [
            torch.from_numpy(question_hints(weights[q], source)).to(device)
            for q, source in (pairs[i] for i in some)
        ]
        scored = selector(text, _padded(hints)[0], text_mask, question, question_mask)
        logits.update((i, row[: len(pairs[i][1].ids)]) for i, row in zip(some, scored, strict=True))
    return [logits[i] for i in range(len(pairs))]


@torch.inference_mode()
def find_answers(
    model: ZModel, question: str, sources: Sequence[PassageFeatures]
) -> list[FloatArray]:
    """For each text, of each token, how likely it is part of the answer; all sum to 1."""
    scored = score_pairs(model, [(question, source) for source in sources])
    logits: list[FloatArray] = [own.cpu().numpy() for own in scored]
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


def _question_ids(model: ZModel, questions: Sequence[str]) -> list[IntArray]:
    """Token ids of questions; one without tokens gets one, so that there is something to see."""
    encoded = model.base.tokenizer(list(questions), add_special_tokens=False, verbose=False)
    return [np.array(ids or [0]) for ids in encoded["input_ids"]]


def _encode(model: ZModel, rows: Sequence[IntArray]) -> list[Tensor]:
    """Token ids as the selector sees them beside each other, `[n, width]` for each row."""
    assert model.selector is not None
    encoded: dict[int, Tensor] = {}
    for some in _by_length([len(row) for row in rows]):
        ids, mask = _padded([torch.from_numpy(rows[i]).long() for i in some])
        ids, mask = ids.to(model.base.device), mask.to(model.base.device)
        states = model.selector.encode(unit_norm(model.base.embeddings(ids)), mask)
        encoded.update((i, row[: len(rows[i])]) for i, row in zip(some, states, strict=True))
    return [encoded[i] for i in range(len(rows))]


def _by_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The places of `lengths` in batches, the shortest first."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    yield from (order[i : i + _AT_ONCE] for i in range(0, len(order), _AT_ONCE))


def _padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows `[n, ...]` as one tensor, zero at padding, and a mask that is false there."""
    padded = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device) < lengths.unsqueeze(1)


def unit_norm(x: Tensor) -> Tensor:
    """Vectors in float32 with a root mean square of 1."""
    return nn.functional.rms_norm(x.float(), x.shape[-1:], eps=1e-6)
