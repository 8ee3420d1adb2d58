"""Looking twice: read everything coarsely, then the pieces where the answer may stand finely.

The codes hold every token, so what is read finely can be chosen when it is read. The first look
names the likely places by the checkpoint's pointer, which needs two thirds of the layers and
writes nothing. The relevance model and an embedding model, which run no LLM, name places too, and
err at others: a piece is as likely as all say together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ztok_rag.codec.pointing import spread
from ztok_rag.codec.reader import Segment, ZReader
from ztok_rag.codec.sequence import ZSequence, sequences_of
from ztok_rag.errors import ZtokError
from ztok_rag.selection.evidence import find_likely, read_closely
from ztok_rag.selection.reading import Reading, asked_by, read_once, unpack, unpack_told
from ztok_rag.selection.sentences import FloatArray, SentenceScorer
from ztok_rag.selection.text_pieces import TextPieces, choose_pieces

_FEWEST = 8  # Z-tokens that are worth a second look
_FIRST = 1 / 3  # of the positions, the most that a first look is worth
_LEAST_LOOKED_AT = 100  # tokens; of fewer, a first look reads little beside its question


@dataclass(frozen=True)
class LookTwice:
    """How to look twice.

    These are read once, as they are: prompts in which no question is found, texts of which the
    question has chosen parts already, and texts that are too short.

    Attributes:
        share: positions of both looks together, as a share of the tokens that are held; `None` is
            as many as there are Z-tokens in the prompt.
        first_rate: source tokens per Z-token of the first look. Where that takes more than a third
            of the positions or reads fewer than 100 tokens, and at `math.inf`, the first is left
            out, and places are named without the LLM.
        from_tokens: prompts whose Z-tokens hold fewer tokens are read once.
    """

    share: float | None = None
    first_rate: float = 16.0
    from_tokens: int = 30

    def __post_init__(self) -> None:
        if not 0 < (1.0 if self.share is None else self.share) <= 1 or not self.first_rate >= 1:
            raise ZtokError(
                "looking twice takes a share of more than 0 and at most 1, and a rate of at least "
                "1."
            )

    def read(
        self,
        reader: ZReader,
        segments: Sequence[Segment],
        *,
        ask_first: bool = True,
        scorer: SentenceScorer | None = None,
        copies_text: bool = False,
    ) -> Reading:
        """How a prompt is read, in one look or in two.

        In the second look, texts in which nothing is likely are one Z-token each.

        Args:
            reader: that answers.
            segments: text and sequences in reading order.
            ask_first: read the question before the Z-tokens, too, in the first look.
            scorer: tells which sentences are about the question; `None` leaves that out.
            copies_text: where it is read once, as `read_once`.

        Returns:
            Each look has the same segments, with other Z-tokens of the same texts.
        """
        sequences, model = sequences_of(segments), reader.model
        question = asked_by(segments) if self._may_choose(sequences) else None
        if question is None:
            return read_once(model, segments, copies_text=copies_text)
        budget, rate = self._plan(sequences, can_point=model.pointer is not None)
        if not model.tells_places and scorer is None and math.isinf(rate):
            return read_once(model, segments, copies_text=copies_text)
        texts, tokens = unpack([(z, slice(0, len(z.places))) for z in sequences], reader.tokenizer)
        told, told_tokens = unpack_told(model, segments)
        found = find_likely(
            model, question, [*texts, *told], [*tokens, *told_tokens], scorer, beside=len(told)
        )
        likely, beside = found[: len(texts)], found[len(texts) :]
        closely = read_closely(model, question, texts, tokens, likely)
        looks: list[list[Segment]] = []
        if math.isfinite(rate):
            first = [s.at(rate) if isinstance(s, ZSequence) else s for s in segments]
            looks.append(first)
            budget -= sum(map(len, sequences_of(first)))
            pointed = _pointed(reader, first, ask_first)
            likely = [a * b for a, b in zip(likely, pointed, strict=True)]
            closely = [a * b for a, b in zip(closely, pointed, strict=True)]
            beside = [max(float(b.max()) for b in pointed) * own for own in beside]
        parts = [TextPieces(text, own) for text, own in zip(texts, tokens, strict=True)]
        scores = [part.scores(own) for part, own in zip(parts, closely, strict=True)]
        chosen = choose_pieces(parts, scores, budget, model.config.slots)
        pieces = iter(chosen)
        looks.append([next(pieces) if isinstance(s, ZSequence) else s for s in segments])
        held = [own[z.places] for own, z in zip(likely, chosen, strict=True)]
        return Reading(looks, [*held, *beside])

    def _may_choose(self, sequences: Sequence[ZSequence]) -> bool:
        """Whether texts are long enough, and not read as text or chosen from already."""
        held = sum(len(z.places) for z in sequences)
        return (
            held >= self.from_tokens
            and held > sum(map(len, sequences))
            and all(z.holds_all for z in sequences)
        )

    def _plan(self, sequences: Sequence[ZSequence], *, can_point: bool) -> tuple[int, float]:
        """Positions of Z-tokens in both looks together, and the rate of the first."""
        held = sum(len(z.places) for z in sequences)
        budget = sum(map(len, sequences))
        if self.share is not None:
            budget = min(budget, round(self.share * held))
        if not can_point or math.isinf(self.first_rate):
            return budget, math.inf
        first = sum(len(z.at(self.first_rate)) for z in sequences)
        is_worth = (
            held >= _LEAST_LOOKED_AT
            and first <= _FIRST * budget
            and budget - first >= _FEWEST + len(sequences)
        )
        return budget, self.first_rate if is_worth else math.inf


def _pointed(reader: ZReader, first: Sequence[Segment], ask_first: bool) -> list[FloatArray]:
    """Of each token of a first look, how likely the answer begins there, by the pointer."""
    shares = reader.point(first, ask_first=ask_first)
    return spread(shares, [np.diff(z.token_spans)[:, 0] for z in sequences_of(first)])
