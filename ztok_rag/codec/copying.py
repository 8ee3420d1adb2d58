"""Copying: answers are drawn towards the tokens that the Z-tokens of the prompt hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor

_LONGEST_RUN = 4


@dataclass(frozen=True)
class CopyCosts:
    """What it costs a token, in nats, not to go on from the codes.

    Attributes:
        first: an answer's first token that stands nowhere in the codes.
        after: a later token that stands in the codes, but not after what was written.
        other: a later token that stands nowhere in the codes.
    """

    first: float = 5.0
    after: float = 6.0
    other: float = 10.0


class CopySource:
    """The tokens that the Z-tokens of one prompt hold, by the tokens before them."""

    def __init__(self, sequences: Sequence[NDArray[np.int64]]) -> None:
        """Index the tokens.

        Args:
            sequences: `[n]` token ids of each sequence in the prompt.
        """
        self.ids: list[int] = []
        for ids in sequences:
            self.ids += [*ids.tolist(), -1]  # no run goes on from one sequence into the next
        self.places: dict[int, list[int]] = {}
        for place, token in enumerate(self.ids):
            self.places.setdefault(token, []).append(place)
        self.places.pop(-1, None)
        self.every = torch.tensor(sorted(self.places), dtype=torch.long)

    def following(self, written: Sequence[int]) -> list[int]:
        """Tokens that stand after the longest end of `written`, of up to four, that is here."""
        for length in range(min(_LONGEST_RUN, len(written)), 0, -1):
            last = list(written[-length:])
            found = [
                self.ids[at + length]
                for at in self.places.get(last[0], ())
                if self.ids[at : at + length] == last
            ]
            found = [token for token in found if token >= 0]
            if found:
                return found
        return []


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
        costs, every = self.costs, source.every.to(scores.device)
        if not written:
            cost = torch.full_like(scores, costs.first)
            cost[every] = 0.0
        else:
            following = source.following(written)
            if not following:
                return None
            cost = torch.full_like(scores, costs.other)
            cost[every] = costs.after
            cost[torch.tensor(following, device=scores.device)] = 0.0
        cost[self.end] = 0.0
        return cost
