"""Copying: answers are drawn towards the tokens that the Z-tokens of the prompt hold.

Where it is known how likely each of them is part of the answer, the likely ones draw more, as in a
pointer network (See et al. 2017, arXiv 1704.04368).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor

from ztok_rag.codec.line_breaks import JoinedLines

_LONGEST_RUN = 4
_LEAST = 1e-9  # share of the likeliest below which all are alike
_SUREST_END = 0.01  # chance below which all ends are alike


@dataclass(frozen=True)
class CopyCosts:
    """What it costs a token, in nats, not to go on from the codes.

    The last two count where it is known how likely each token of the codes is part of the answer.

    Attributes:
        first: an answer's first token that stands nowhere in the codes; and the most that unlikely
            places cost.
        after: a later token that stands in the codes, but not after what was written.
        other: a later token that stands nowhere in the codes.
        place: a token whose places are less likely than the likeliest, for each nat of difference.
        end: an end where the places that go on are likely, for each nat by which its chance falls.
    """

    first: float = 5.0
    after: float = 6.0
    other: float = 10.0
    place: float = 0.7
    end: float = 0.5


class CopySource:
    """The tokens that an answer to one prompt may copy, by the tokens before them."""

    def __init__(
        self,
        sequences: Sequence[NDArray[np.int64]],
        likely: Sequence[NDArray[np.floating[Any]]] | None = None,
        lines: Sequence[Sequence[JoinedLines]] = (),
    ) -> None:
        """Index the tokens.

        Args:
            sequences: `[n]` token ids of each sequence in the prompt.
            likely: `[n]` of each sequence, how likely each token is part of the answer; `None`
                where that is not known.
            lines: of each sequence, what may be copied in its place where lines end; none by
                default.
        """
        self._lines = [(number, own) for number, each in enumerate(lines) for own in each]
        self._sequences = sequences
        self.ids: list[int] = []
        for ids in (*sequences, *(own.ids for _, own in self._lines)):
            self.ids += [*ids.tolist(), -1]  # no run goes on from one sequence into the next
        self.likely = None if likely is None else self._of_all(likely)
        self.begins = self.likely
        self.places: dict[int, list[int]] = {}
        for place, token in enumerate(self.ids):
            self.places.setdefault(token, []).append(place)
        self.places.pop(-1, None)
        self.every = torch.tensor(sorted(self.places), dtype=torch.long)

    def point(self, shares: Sequence[NDArray[np.floating[Any]]]) -> None:
        """Take in where a pointer says that the answer begins.

        Args:
            shares: `[n]` of each of the first sequences, how likely that is at each token. In
                others, of which the pointer knows nothing, all are as likely as the likeliest.
        """
        top = max(float(own.max()) for own in shares)
        others = [np.full(len(ids), top) for ids in self._sequences[len(shares) :]]
        pointed = self._of_all([*shares, *others])
        likely = self.likely or [1.0] * len(pointed)
        self.begins = [a * b for a, b in zip(likely, pointed, strict=True)]

    def _of_all(self, values: Sequence[NDArray[np.floating[Any]]]) -> list[float]:
        """Values of the sequences' tokens for each of `ids`."""
        every = [*values, *(values[number][own.owners] for number, own in self._lines)]
        return [value for own in every for value in (*own.tolist(), 0.0)]

    def following(self, written: Sequence[int]) -> list[int]:
        """Places after the longest end of `written`, of up to four tokens, that is here."""
        for length in range(min(_LONGEST_RUN, len(written)), 0, -1):
            last = list(written[-length:])
            found = [
                at + length
                for at in self.places.get(last[0], ())
                if self.ids[at : at + length] == last
            ]
            found = [place for place in found if self.ids[place] >= 0]
            if found:
                return found
        return []

    def first_costs(self, costs: CopyCosts) -> Tensor:
        """What each token of `every` costs as an answer's first."""
        begins = self.begins
        if begins is None:
            return torch.zeros(len(self.every))
        mass = [sum(begins[p] for p in self.places[token]) for token in self.every.tolist()]
        return _place_costs(mass, costs)

    def next_costs(self, places: Sequence[int], costs: CopyCosts) -> tuple[list[int], Tensor]:
        """Tokens that stand at places of `following`, and what each costs.

        A place is as likely as the token before it, which is written.
        """
        mass: dict[int, float] = {}
        for place in places:
            own = 0.0 if self.likely is None else self.likely[place - 1]
            mass[self.ids[place]] = mass.get(self.ids[place], 0.0) + own
        if self.likely is None:
            return list(mass), torch.zeros(len(mass))
        return list(mass), _place_costs(list(mass.values()), costs)

    def end_cost(self, places: Sequence[int], costs: CopyCosts) -> float:
        """What it costs to end the answer before places of `following`.

        It costs nothing where these are unlikely, and the tokens before them are not.
        """
        if self.likely is None:
            return 0.0
        before = sum(self.likely[place - 1] for place in places)
        lost = sum(max(0.0, self.likely[place - 1] - self.likely[place]) for place in places)
        return -costs.end * math.log(max(_SUREST_END, lost / before if before else 1.0))


def _place_costs(mass: Sequence[float], costs: CopyCosts) -> Tensor:
    """Costs of tokens whose places are so likely together; the likeliest costs nothing."""
    most = max(mass) or 1.0
    nats = torch.tensor([own / most for own in mass]).clamp(min=_LEAST).log()
    return (-costs.place * nats).clamp(max=costs.first)


class CopyFromCodes(LogitsProcessor):  # type: ignore[misc]
    """Lowers the scores of tokens that do not go on from the codes; ending costs nothing.

    Once what was written stands nowhere in the codes, the LLM writes freely.
    """

    def __init__(
        self, sources: Sequence[CopySource | None], end: int, costs: CopyCosts | None = None
    ) -> None:
        """Set up for one batch.

        Args:
            sources: of each prompt; `None` where nothing is copied. With beams, each stands for
                as many rows as there are beams.
            end: id of the token that ends an answer.
            costs: `None` is the default.
        """
        self.sources = sources
        self.end = end
        self.costs = costs or CopyCosts()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[rows, vocabulary]` of the next token after those written, `[rows, n]`."""
        scores = scores.clone()
        beams = len(input_ids) // len(self.sources)
        for row, written in enumerate(input_ids.tolist()):
            source = self.sources[row // beams]
            if source is not None:
                cost = self._cost(source, written, scores[row])
                if cost is not None:
                    scores[row] -= cost
        return scores

    def _cost(self, source: CopySource, written: list[int], scores: Tensor) -> Tensor | None:
        costs, device = self.costs, scores.device
        every = source.every.to(device)
        if not written:
            cost = torch.full_like(scores, costs.first)
            cost[every] = source.first_costs(costs).to(scores)
            cost[self.end] = 0.0
            return cost
        places = source.following(written)
        if not places:
            return None
        cost = torch.full_like(scores, costs.other)
        cost[every] = costs.after
        tokens, own = source.next_costs(places, costs)
        cost[torch.tensor(tokens, device=device)] = own.to(scores)
        cost[self.end] = source.end_cost(places, costs)
        return cost
