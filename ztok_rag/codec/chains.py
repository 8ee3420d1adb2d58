"""Chains of tokens that a write head writes from states of its LLM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ztok_rag.codec.base import BaseLM
from ztok_rag.codec.speculation import Draft
from ztok_rag.codec.write_head import WriteHead

LONGEST_CHAIN = 6
"""Most tokens of a draft."""

_LEAST_CHANCE = 0.2  # of all tokens of a draft together, below which it is not gone on with


class Chains:
    """A write head beside the embeddings of its LLM.

    Attributes:
        head: the write head.
        ids: `[v + 1]` the token of each score; the last is -1, for "none of these".
    """

    def __init__(self, base: BaseLM, head: WriteHead, scale: float) -> None:
        """Set up.

        Args:
            base: the LLM.
            head: trained on its states.
            scale: standard deviation of its input embeddings.
        """
        self.head = head
        self.ids = torch.cat([head.vocabulary, head.vocabulary.new_full((1,), -1)])
        self._table = base.embeddings.weight
        self._scale = scale
        dtype = head.opening.weight.dtype
        with torch.no_grad():
            rows: Tensor = base.head.weight[head.vocabulary]  # type: ignore[index, assignment]
            self._rows = rows.detach().to(dtype)

    @torch.inference_mode()
    def open(self, states: Tensor) -> Tensor:
        """Memory `[n, width]` of chains from states `[n, hidden]`."""
        return self.head.open(states)

    @torch.inference_mode()
    def extend(self, memory: Tensor, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Go on by a token each.

        Args:
            memory: `[n, width]`.
            tokens: the next token of each chain.

        Returns:
            The new memory, and log probabilities `[n, v + 1]` of the token after.
        """
        chosen = torch.tensor(tokens, device=self._table.device)
        embedded = nn.functional.embedding(chosen, self._table) / self._scale
        memory = self.head.step(memory, embedded)
        return memory, self.head(memory, self._rows)

    def draft(
        self, states: Tensor, tokens: Sequence[int], rooms: Sequence[int], trust: Sequence[float]
    ) -> list[Draft]:
        """What the LLM may write next, each chain as far as it is likely to be right.

        Args:
            states: `[n, hidden]` the LLM's last states.
            tokens: what it wrote from them.
            rooms: most tokens of each draft.
            trust: how much likelier each answer's drafts are right than is usual.
        """
        count = len(tokens)
        memory, last = self.open(states), list(tokens)
        found: list[list[int]] = [[] for _ in range(count)]
        chances: list[list[float]] = [[] for _ in range(count)]
        together = [1.0] * count
        going = [room > 0 for room in rooms]
        for _ in range(LONGEST_CHAIN):
            if not any(going):
                break
            memory, scores = self.extend(memory, last)
            best = scores.max(-1)
            chance = self.head.chance(best.values.exp()).tolist()
            last = self.ids[best.indices].tolist()
            for row in range(count):
                together[row] *= min(1.0, chance[row] * trust[row])
                going[row] &= last[row] >= 0 and together[row] >= _LEAST_CHANCE
                if going[row]:
                    found[row].append(last[row])
                    chances[row].append(chance[row])
                    going[row] = len(found[row]) < rooms[row]
            last = [max(token, 0) for token in last]
        return [Draft(*own, is_guess=True) for own in zip(found, chances, strict=True)]
