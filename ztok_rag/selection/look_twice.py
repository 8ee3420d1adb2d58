"""Looking twice: read everything coarsely, then the places where the answer may stand finely.

The codes hold every token, so the reader can choose at which rate it reads each part. A first look
names the likely places, by the checkpoint's pointer, which needs two thirds of the layers and
writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ztok_rag.codec.reader import Segment, ZReader
from ztok_rag.codec.sequence import ZSequence, join_sequences
from ztok_rag.errors import ZtokError

_COARSEST = 16.0
_FIRST_LOOKS = 3.0  # that the positions of both looks would pay for


@dataclass(frozen=True)
class LookTwice:
    """How to look twice.

    Texts of which the question has chosen parts already are read once, as they are; so is a
    prompt whose Z-tokens are too few for two looks.

    Attributes:
        share: positions of both looks together, as a share of the tokens that are held; `None` is
            as many as there are Z-tokens in the prompt.
        first_rate: source tokens per Z-token of the first look; `None` spends a third of the
            positions on it, up to a rate of 16.
        half_window: tokens that are read finely to each side of a likely place.
        keeps_rest: read what is not read finely once more, as in the first look. Else it is left
            out, as texts that do not answer mislead, and a text without a likely place is one
            Z-token.
        from_tokens: prompts whose Z-tokens hold fewer tokens are read once.
    """

    share: float | None = None
    first_rate: float | None = None
    half_window: int = 20
    keeps_rest: bool = False
    from_tokens: int = 400

    def __post_init__(self) -> None:
        if (
            not 0 < (1.0 if self.share is None else self.share) <= 1
            or (self.first_rate is not None and self.first_rate < 1)
            or self.half_window < 1
        ):
            raise ZtokError(
                "looking twice takes a share of more than 0 and at most 1, a rate of at least 1, "
                "and a window of at least one token to each side."
            )

    def plan(self, segments: Sequence[Segment]) -> tuple[int, float]:
        """Positions of Z-tokens in both looks together, and the rate of the first.

        No positions are left to the second look where one look is better: 0 is returned.
        """
        sequences = [s for s in segments if isinstance(s, ZSequence)]
        held = sum(len(z.places) for z in sequences)
        given = sum(map(len, sequences))
        if held < self.from_tokens or given == held or not all(z.holds_all for z in sequences):
            return 0, 1.0
        budget = given if self.share is None else min(given, round(self.share * held))
        rate = self.first_rate or min(_COARSEST, _FIRST_LOOKS * held / max(1, budget))
        looks = 2 if self.keeps_rest else 1
        spare = budget - looks * held / rate
        return (budget, rate) if spare >= self.half_window else (0, rate)

    def apply(
        self, reader: ZReader, segments: Sequence[Segment], *, ask_first: bool = True
    ) -> list[Segment]:
        """A prompt as it is read in the second look.

        Args:
            reader: that answers.
            segments: text and sequences in reading order; the question comes last.
            ask_first: read the question before the Z-tokens, too, in the first look.

        Returns:
            The same segments, with other Z-tokens of the same texts.
        """
        budget, rate = self.plan(segments)
        if not budget or reader.model.pointer is None:
            return list(segments)
        coarse = first_look(segments, rate)
        sequences = [s for s in coarse if isinstance(s, ZSequence)]
        shares = reader.point(coarse, ask_first=ask_first)
        likely = [
            np.repeat(share / z.sizes, z.sizes) for share, z in zip(shares, sequences, strict=True)
        ]
        first = sum(map(len, sequences))
        spare = budget - 2 * first if self.keeps_rest else budget - first - len(sequences)
        rest = rate if self.keeps_rest else math.inf
        fine = choose_windows(likely, spare, self.half_window, rest)
        chosen = iter(zip(sequences, fine, strict=True))
        return [mix(*next(chosen), rest) if isinstance(s, ZSequence) else s for s in coarse]


def first_look(segments: Sequence[Segment], rate: float) -> list[Segment]:
    """A prompt with all its sequences at a rate."""
    return [s.at(rate) if isinstance(s, ZSequence) else s for s in segments]


def choose_windows(
    likely: Sequence[NDArray[np.floating]], budget: int, half: int, rate: float
) -> list[NDArray[np.bool_]]:
    """Which tokens to read finely.

    The likeliest token and those around it are taken first, then the likeliest of the others,
    until the budget is spent.

    Args:
        likely: for each text, `[n]` how likely the answer begins at each token.
        budget: positions that reading finely may cost more than reading coarsely.
        half: tokens to each side of a place.
        rate: of what is not read finely.

    Returns:
        For each text, bool `[n]`.
    """
    fine = [np.zeros(len(own), bool) for own in likely]
    left = [np.array(own, np.float64) for own in likely]
    price = 1.0 - 1.0 / rate
    while budget > 0 and left:
        best = max(range(len(left)), key=lambda i: float(left[i].max(initial=-1.0)))
        place = int(left[best].argmax())
        if left[best][place] <= 0:
            break
        window = slice(max(0, place - half), place + half + 1)
        new = np.flatnonzero(~fine[best][window]) + window.start
        nearest = new[np.argsort(np.abs(new - place), kind="stable")][: int(budget / price)]
        fine[best][nearest] = True
        left[best][window] = -1.0
        budget -= max(1, round(len(nearest) * price))
    return fine


def mix(z: ZSequence, fine: NDArray[np.bool_], rate: float) -> ZSequence:
    """A sequence whose `fine` tokens are Z-tokens of their own, the others at a rate.

    At an infinite rate they are left out. Where no token is fine, the sequence stays as it is, or
    is one Z-token.
    """
    if not fine.any():
        return z if math.isfinite(rate) else z.view(np.arange(len(fine)), float(len(fine)))
    cuts = np.flatnonzero(np.diff(fine)) + 1
    runs = np.split(np.arange(len(fine)), cuts)
    return join_sequences(
        [
            z.view(run, 1.0 if fine[run[0]] else rate)
            for run in runs
            if fine[run[0]] or math.isfinite(rate)
        ]
    )
