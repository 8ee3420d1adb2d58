"""Rows of training batches: what the reader reads, and what it should say.

Everything about a row is drawn for it alone: what kind it is, which passages it shows, at which
rates, how their tokens are shared out between Z-tokens, and whether the question is asked before
the context, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ztok_rag.codec.allocation import allocate, choose_held, count_z_tokens
from ztok_rag.codec.compressed_text import CompressedText, levels_of
from ztok_rag.codec.packer import EMPTY
from ztok_rag.codec.sequence import pack_codes
from ztok_rag.codec.token_code import TokenCode
from ztok_rag.errors import DataError
from ztok_rag.training.data import TrainingData
from ztok_rag.training.phrases import Phrases
from ztok_rag.training.surprisal import Surprisal

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
IdArray = NDArray[np.int32]

RATES = (1, 1, 2, 2, 3, 3, 4, 4, 4, 4, 4, 6, 6, 8, 8, 8, 8, 8, 12, 16, 16, 16, 24)

SHARES = {"answer": 0.47, "cloze": 0.17, "repeat": 0.18, "excerpt": 0.18}
"""Rows of each kind where all are trained at once."""

MOST_PLACES = 6
"""Places where an answer stands that the pointer may name, and answer tokens that it is asked
for."""

_NEAR = 400  # passages to either side that may be shown beside one
_LONGEST_EXCERPT = 400
_LONGEST_CLOZE = 500
_RARE, _SCARCE = 7.0, 5.0  # nats


class Kind(IntEnum):
    """What a row trains."""

    ANSWER = 0
    CLOZE = 1
    REPEAT = 2
    EXCERPT = 3


WEIGHTS = {Kind.ANSWER: 1.0, Kind.CLOZE: 0.6, Kind.EXCERPT: 0.2, Kind.REPEAT: 0.12}
"""Of the loss of each target token."""


class SpanMode(IntEnum):
    """What each of a text's Z-tokens holds about equally much of."""

    EVEN = 0
    WEIGHT = 1
    SURPRISAL = 2


_MODES = (SpanMode.EVEN, SpanMode.WEIGHT, SpanMode.WEIGHT, SpanMode.SURPRISAL)


@dataclass(frozen=True)
class Positions:
    """Input positions of the reader.

    Attributes:
        codes: `[n, slots]` ids of the tokens that each holds; a token of plain text is one that
            holds itself.
        spans: `[n, 2]` the tokens `[start, end)` of all passages, end to end, that each stands
            for; -1 for what is not from a passage.
    """

    codes: IdArray
    spans: IntArray

    def __len__(self) -> int:
        return len(self.codes)


@dataclass(frozen=True)
class Row:
    """A prompt and what should follow it.

    Attributes:
        positions: prompt and target, without the target's last token.
        target: token ids to predict; the last positions predict them.
        kind: what the row trains.
        places: where the answer's first token stands among the tokens of all passages; empty
            where the pointer learns nothing.
        steps: answer tokens that the pointer is asked for.
    """

    positions: Positions
    target: IdArray
    kind: Kind
    places: IntArray
    steps: int

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class RowSettings:
    """How rows are drawn.

    Attributes:
        rates: drawn from for each passage or row.
        before: share of questions that are asked before the context, too.
    """

    rates: tuple[float, ...] = RATES
    before: float = 0.65


class Rows:
    """Draws rows from training data."""

    def __init__(
        self,
        data: TrainingData,
        surprisal: Surprisal,
        code: TokenCode,
        phrases: Phrases,
        slots: int,
        settings: RowSettings,
    ) -> None:
        """See the class.

        Args:
            data: passages and questions.
            surprisal: of the passages' tokens.
            code: the checkpoint's, which says how rare tokens are.
            phrases: the rest of prompts.
            slots: most tokens that a Z-token holds.
            settings: see `RowSettings`.
        """
        self.data = data
        self.surprisal = surprisal
        self.code = code
        self.rarity = code.rarity
        self.phrases = phrases
        self.slots = slots
        self.settings = settings
        self._coarse = tuple(rate for rate in settings.rates if rate > 1) or settings.rates
        lengths = np.diff(data.passages.edges)
        shares = np.array(data.shares)
        self._texts = np.cumsum(np.minimum(lengths, _LONGEST_EXCERPT) * shares[data.passage_set])
        # Questions of each file, and of each passage.
        self._sets, sizes = np.unique(data.question_set, return_counts=True)
        self._set_shares = np.cumsum(sizes**0.75 * shares[self._sets]) if len(sizes) else sizes
        self._by_set = np.split(np.argsort(data.question_set, kind="stable"), np.cumsum(sizes)[:-1])
        self._by_passage = np.argsort(data.question_passage, kind="stable")
        counts = np.bincount(data.question_passage, minlength=len(data.passages))
        self._question_edges = np.cumsum([0, *counts])

    def draw(self, rng: Generator, shares: Mapping[str, float]) -> list[Row]:
        """Rows of one kind, drawn by `shares`; none where what was drawn allows none."""
        kinds, weights = list(shares), np.array(list(shares.values()))
        kind = kinds[_choose(np.cumsum(weights), rng)]
        make = {
            "answer": self._answers,
            "cloze": self._clozes,
            "repeat": self._repeats,
            "excerpt": self._excerpts,
        }[kind]
        return list(make(rng))

    # Positions

    def pack(
        self,
        passage: int,
        start: int,
        end: int,
        rate: float,
        mode: SpanMode = SpanMode.WEIGHT,
        rng: Generator | None = None,
    ) -> Positions:
        """Tokens `[start, end)` of a passage at a rate."""
        first, last = self.data.passages.edges[passage : passage + 2].tolist()
        low, high = first + start, first + end
        ids = self.data.passages.ids[low:high]
        if rate <= 1 or len(ids) <= 1:
            return self._singles(ids, low)
        count = count_z_tokens(len(ids), rate, self.slots)
        weights = self._weights(first, last)[start:end]
        shared = weights
        if mode == SpanMode.EVEN:
            shared = 1.0 + (rng.random(len(ids)) * 0.5 if rng is not None else 0.0 * weights)
        elif mode == SpanMode.SURPRISAL:
            nats = self.surprisal.nats[low:high].astype(np.float64)
            shared = nats + 0.5 * nats.mean() + 0.05
        held = np.arange(len(ids))
        if len(held) > count * self.slots:
            predicted = self.surprisal.predicted[low:high]
            held = choose_held(weights, predicted, count * self.slots)
        spans = allocate(shared[held], count, self.slots)
        begins = low + held[np.flatnonzero(np.diff(spans, prepend=-1))]
        begins[0] = low
        ends = np.append(begins[1:], high)
        return Positions(
            pack_codes(ids[held].astype(np.int64), spans, self.slots),
            np.stack([begins, ends], axis=1),
        )

    def _weights(self, first: int, last: int) -> FloatArray:
        """Of the tokens of a whole passage, as when it is compressed."""
        nats = self.surprisal.nats[first:last].astype(np.float64)
        text = CompressedText(
            ids=self.data.passages.ids[first:last].astype(np.int64),
            levels=levels_of(nats, np.asarray(self.surprisal.predicted[first:last])),
            starts=np.arange(last - first),
            characters=last - first,
            fingerprint="",
            digest=b"",
            code=self.code,
        )
        return text.weights

    def _singles(self, ids: IdArray, start: int | None = None) -> Positions:
        codes = np.full((len(ids), self.slots), EMPTY, np.int32)
        codes[:, 0] = ids
        spans = np.full((len(ids), 2), -1, np.int64)
        if start is not None:
            spans[:, 0] = start + np.arange(len(ids))
            spans[:, 1] = spans[:, 0] + 1
        return Positions(codes, spans)

    def _whole(self, passage: int, rate: float, mode: SpanMode, rng: Generator | None) -> Positions:
        return self.pack(passage, 0, len(self.data.passages[passage]), rate, mode, rng)

    def _joined(self, passages: Sequence[Positions]) -> list[Positions]:
        """Passages with blank lines between them."""
        blank = self._singles(self.phrases.blank)
        parts = []
        for number, passage in enumerate(passages):
            parts += [blank, passage] if number else [passage]
        return parts

    def _row(
        self,
        parts: Sequence[Positions],
        target: IdArray,
        kind: Kind,
        places: IntArray | None = None,
        steps: int = 0,
    ) -> Row:
        """A row that begins with the start token and ends with the target."""
        every = [self._singles(self.phrases.start), *parts, self._singles(target[:-1])]
        positions = Positions(
            np.concatenate([p.codes for p in every]), np.concatenate([p.spans for p in every])
        )
        if places is None:
            places = np.zeros(0, np.int64)
        return Row(positions, target, kind, places[:MOST_PLACES], min(steps, len(target)))

    # Questions

    def _answers(self, rng: Generator) -> Iterator[Row]:
        """A question, and sometimes another of the same passage, over one or more passages."""
        data = self.data
        asked = self._by_set[_choose(self._set_shares, rng)]
        question = int(_pick(asked, rng))
        passage = int(data.question_passage[question])
        mode, rate = _pick(_MODES, rng), _pick(self.settings.rates, rng)
        layout = rng.random()
        if layout < 0.52:
            context = [self._whole(passage, rate, mode, rng)]
        elif layout < 0.78:
            context = self._many(passage, rate, mode, rng)
        else:
            answer = data.question_span[question]
            shown = [passage]
            if rng.random() < 0.5:
                shown = self._neighbours(passage, int(rng.integers(2, 6)), rng)
            nowhere = np.array([-1, -1])
            context = self._joined(
                [self._mixed(p, answer if p == passage else nowhere, rng) for p in shown]
            )
        template = self.phrases.templates[
            0 if rng.random() < 3 / 7 else int(rng.integers(1, len(self.phrases.templates)))
        ]
        edges = self._question_edges[passage : passage + 2]
        same = self._by_passage[edges[0] : edges[1]]
        picked = [question]
        if layout < 0.78 and len(same) > 1 and rng.random() < 0.3:
            picked = list(dict.fromkeys([question, int(_pick(same, rng))]))
        for number in picked:
            answers = data.answers if template.is_spaced else data.bare_answers
            places, steps = self._places(passage, data.question_span[number])
            prompt = self._prompt(
                data.questions[number], context, template.head, template.middle, template.end, rng
            )
            target = np.concatenate([answers[number], self.phrases.end])
            yield self._row(prompt, target, Kind.ANSWER, places, steps)

    def _prompt(
        self,
        question: IdArray,
        context: Sequence[Positions],
        head: IdArray,
        middle: IdArray,
        end: IdArray,
        rng: Generator,
    ) -> list[Positions]:
        """Context and question; the question, or all that follows the context, stands before the
        context, too, as often as the settings say."""
        tail = np.concatenate([middle, question, end])
        parts = [*context, self._singles(tail)]
        if len(head):
            parts.insert(0, self._singles(head))
        if rng.random() < self.settings.before:
            alone = np.concatenate([self.phrases.ask, question])
            first = alone if rng.random() < 0.5 else tail
            parts.insert(0, self._singles(np.concatenate([first, self.phrases.blank])))
        return parts

    def _many(self, passage: int, rate: float, mode: SpanMode, rng: Generator) -> list[Positions]:
        """A passage among others, all at one rate or each at its own."""
        count = int(rng.integers(2, 7) if rng.random() < 0.8 else rng.integers(6, 16))
        shown = self._neighbours(passage, count, rng)
        least = 1 if count < 3 or (count < 6 and rng.random() < 0.3) else 2 if count < 5 else 4
        rate = max(rate, least)
        each = rng.random() < 0.4
        packed = []
        for number in shown:
            own = _pick(self.settings.rates, rng) if each else rate
            if own > 1 and count > 4:
                own = max(own, 2)
            packed.append(self._whole(number, own, mode, rng))
        return self._joined(packed)

    def _neighbours(self, passage: int, count: int, rng: Generator) -> list[int]:
        """A passage and others, most from near it in its file, in random order."""
        data, every = self.data, len(self.data.passages)
        low, high = max(0, passage - _NEAR), min(every, passage + _NEAR)
        found = [passage]
        for _ in range(count - 1):
            if rng.random() < 0.6:
                other = passage + int(rng.integers(1, 9)) * (1 if rng.random() < 0.5 else -1)
                if not low <= other < high or data.passage_set[other] != data.passage_set[passage]:
                    other = int(rng.integers(low, high))
            else:
                other = int(rng.integers(every))
            if other not in found:
                found.append(other)
        rng.shuffle(found)
        return found

    def _mixed(self, passage: int, answer: IntArray, rng: Generator) -> Positions:
        """A passage in pieces at rates of their own, finer where the answer stands."""
        looks_twice = rng.random() < 0.5
        parts = (self._twice if looks_twice else self._pieces)(passage, answer, rng)
        return Positions(
            np.concatenate([p.codes for p in parts]), np.concatenate([p.spans for p in parts])
        )

    def _twice(self, passage: int, answer: IntArray, rng: Generator) -> list[Positions]:
        """Coarse, and fine around some places, as on a second look."""
        n = len(self.data.passages[passage])
        rate, half = _pick((6, 8, 8, 8, 12, 16), rng), int(rng.integers(8, 33))
        middles = [int(rng.integers(n)) for _ in range(int(rng.integers(0, 3)))]
        if answer[0] >= 0 and rng.random() < 0.85:
            middles.append(int(rng.integers(answer[0], answer[1])))
        fine = _pick((1, 1, 1, 2), rng)
        parts, at = [], 0
        for middle in sorted(middles):
            start, end = max(at, middle - half), min(n, middle + half)
            if end <= start:
                continue
            if start > at:
                parts.append(self.pack(passage, at, start, rate))
            parts.append(self.pack(passage, start, end, fine))
            at = end
        if at < n:
            parts.append(self.pack(passage, at, n, rate))
        return parts

    def _pieces(self, passage: int, answer: IntArray, rng: Generator) -> list[Positions]:
        """Pieces of 8 to 39 tokens, some left out; those with the answer are mostly fine."""
        n = len(self.data.passages[passage])
        cuts = [0]
        while cuts[-1] < n:
            cuts.append(min(n, cuts[-1] + int(rng.integers(8, 40))))
        honest = rng.random() < 0.75
        parts = []
        for start, end in itertools.pairwise(cuts):
            if honest and start < answer[1] and end > answer[0] >= 0:
                rate = _pick((1, 1, 2, 2, 4), rng)
            else:
                rate = _pick((0, 0, 0, 1, 2, 4, 8, 8, 16, 16), rng)
            if rate:
                parts.append(self.pack(passage, start, end, rate))
        return parts or [self.pack(passage, 0, n, 8)]

    def _places(self, passage: int, span: IntArray) -> tuple[IntArray, int]:
        """Where the tokens of an answer begin, wherever they stand in a passage; their number."""
        start, end = span.tolist()
        if start < 0:
            return np.zeros(0, np.int64), 0
        ids = self.data.passages[passage]
        found = np.flatnonzero(ids[: len(ids) - (end - start) + 1] == ids[start])
        for offset in range(1, end - start):
            found = found[ids[found + offset] == ids[start + offset]]
        return self.data.passages.edges[passage] + found, min(end - start, MOST_PLACES)

    # Rows that need no questions

    def _repeats(self, rng: Generator) -> Iterator[Row]:
        """Write the text that the Z-tokens hold."""
        passage = self._text(rng)
        ids = self.data.passages[passage]
        length = _pick((32, 64, 64, 128, 128, 192, 256), rng)
        start = int(rng.integers(0, max(1, len(ids) - length)))
        end = min(len(ids), start + length)
        packed = self.pack(passage, start, end, _pick(self._coarse, rng), _pick(_MODES, rng), rng)
        target = np.concatenate([ids[start:end], self.phrases.end])
        yield self._row([packed, self._singles(self.phrases.repeat)], target, Kind.REPEAT)

    def _excerpts(self, rng: Generator) -> Iterator[Row]:
        """Go on from some words of the text."""
        passage, count = self._text(rng), _pick((1, 1, 1, 2, 3, 5), rng)
        shown = self._neighbours(passage, count, rng) if count > 1 else [passage]
        rate, mode = (
            max(_pick(self.settings.rates, rng), 1 if count == 1 else 2),
            _pick(_MODES, rng),
        )
        cuts = []
        for number in shown:
            size, start = len(self.data.passages[number]), 0
            if size > _LONGEST_EXCERPT + 100:
                start = int(rng.integers(0, size - _LONGEST_EXCERPT))
                size = start + _LONGEST_EXCERPT
            cuts.append((number, start, size))
        context = self._joined([self.pack(n, a, b, rate, mode, rng) for n, a, b in cuts])
        for _ in range(2):
            number, low, high = cuts[int(rng.integers(len(cuts)))]
            ids, cue = self.data.passages[number][low:high], int(rng.integers(3, 8))
            if len(ids) < cue + 10:
                continue
            start = int(rng.integers(0, len(ids) - cue - 8))
            after = start + cue
            target = ids[after : after + 32]
            prompt = [self.phrases.cue, ids[start:after], self.phrases.cue_end]
            place = self.data.passages.edges[number] + np.array([low + after])
            yield self._row(
                [*context, self._singles(np.concatenate(prompt))], target, Kind.EXCERPT, place, 3
            )

    def _clozes(self, rng: Generator) -> Iterator[Row]:
        """Words that occur twice in a passage: the sentence around one occurrence is the question.

        "Recurring span selection" (Ram et al. 2021, arXiv 2101.00438).
        """
        passage = self._text(rng)
        every = self.data.passages[passage]
        low = max(0, len(every) - _LONGEST_CLOZE)
        low = int(rng.integers(0, low)) if low else 0
        ids = every[low : low + _LONGEST_CLOZE]
        pairs = self._recurring(ids)
        if not len(pairs):
            return
        rate, mode, template = (
            _pick(self.settings.rates, rng),
            _pick(_MODES, rng),
            self.phrases.templates[0],
        )
        for _ in range(2):
            kept, asked = _pick(pairs, rng).tolist()
            before, after = self._extent(ids, kept, asked)
            left = max(0, asked - before - int(rng.integers(8, 18)))
            right = min(len(ids), asked + after + int(rng.integers(8, 18)))
            if left <= kept < right:
                continue
            context = [
                self.pack(passage, low + start, low + end, rate, mode, rng)
                for start, end in ((0, left), (right, len(ids)))
                if end - start > 4
            ]
            question = np.concatenate(
                [ids[left : asked - before], self.phrases.gap, ids[asked + after : right]]
            )
            prompt = self._prompt(
                question, context, np.zeros(0, np.int32), template.middle, template.end, rng
            )
            target = np.concatenate([ids[asked - before : asked + after], self.phrases.end])
            place = self.data.passages.edges[passage] + np.array([low + kept - before])
            steps = min(before + after, MOST_PLACES)
            yield self._row(prompt, target, Kind.CLOZE, place, steps)

    def _recurring(self, ids: IdArray) -> IntArray:
        """Pairs of places, not near each other, of one rare token."""
        rare = np.flatnonzero(self.rarity[ids] > _RARE)
        if len(ids) < 60 or len(rare) < 4:
            return np.zeros((0, 2), np.int64)
        same = ids[rare][:, None] == ids[rare][None, :]
        apart = np.abs(rare[:, None] - rare[None, :]) > 24
        return rare[np.argwhere(same & apart)]

    def _extent(self, ids: IdArray, one: int, other: int) -> tuple[int, int]:
        """How far two like places stay alike: tokens before, and tokens from there on."""
        before, after = 0, 1
        first, last = min(one, other), max(one, other)
        while before < 3 and before < first:
            token = ids[one - before - 1]
            if token != ids[other - before - 1] or self.rarity[token] <= _SCARCE:
                break
            before += 1
        while after < 6 and last + after < len(ids) and ids[one + after] == ids[other + after]:
            after += 1
        return before, after

    def _text(self, rng: Generator) -> int:
        """A passage, as often as it is long, within limits."""
        return _choose(self._texts, rng)


def check_kinds(kinds: Sequence[str], data: TrainingData) -> None:
    """Raise `DataError` unless rows of these kinds can be drawn."""
    for kind in kinds:
        if kind not in SHARES:
            raise DataError(f"unknown phase {kind!r}; phases are made of {', '.join(SHARES)}.")
        if kind == "answer" and not len(data.questions):
            raise DataError(
                "the data have no questions to train answers on; leave the phase out, or give "
                "rows of {context, question, answers}."
            )


def _choose(cumulative: NDArray[np.float64] | IntArray, rng: Generator) -> int:
    """An index, by cumulated shares."""
    found = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
    return min(found, len(cumulative) - 1)


def _pick(values: Any, rng: Generator) -> Any:
    return values[int(rng.integers(len(values)))]
