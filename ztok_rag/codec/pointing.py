"""Where in a prompt the checkpoint's pointer has an answer begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ztok_rag.codec.packer import Pointer
from ztok_rag.codec.sequence import IntArray, ZSequence


@dataclass(frozen=True)
class ZPlaces:
    """Where the Z-tokens of a prompt stand.

    Attributes:
        positions: of each sequence `[n_z]`, its Z-tokens' positions in the prompt.
        sizes: of each sequence `[n_z]`, how many tokens each Z-token holds.
    """

    positions: list[Tensor]
    sizes: list[IntArray]

    @classmethod
    def of(cls, segments: Sequence[object], parts: Sequence[Tensor]) -> ZPlaces:
        """Those of a prompt.

        Args:
            segments: of the prompt, in reading order; sequences and others.
            parts: of each segment, its input embeddings `[positions, hidden]`.
        """
        at, positions, sizes = 0, [], []
        for segment, part in zip(segments, parts, strict=True):
            if isinstance(segment, ZSequence):
                positions.append(torch.arange(at, at + len(part)))
                sizes.append(segment.sizes)
            at += len(part)
        return cls(positions, sizes)

    def point(self, pointer: Pointer, states: Tensor) -> list[NDArray[np.float32]]:
        """How likely the answer's first token stands in each Z-token.

        Args:
            pointer: that tells.
            states: `[positions, hidden]` of the prompt, after the pointer's layer.

        Returns:
            `[n_z]` of each sequence; together they sum to 1.
        """
        if not self.positions:
            return []
        keys = states[torch.cat(self.positions).to(states.device)]
        shares = pointer(states[-1], keys).softmax(-1).float().cpu().numpy()
        return np.split(shares, np.cumsum([len(own) for own in self.positions])[:-1])


def spread(
    shares: Sequence[NDArray[np.float32]], sizes: Sequence[IntArray]
) -> list[NDArray[np.float64]]:
    """What Z-tokens have, shared out evenly among the tokens that each holds.

    Args:
        shares: of each sequence `[n_z]`.
        sizes: of each sequence `[n_z]`, how many tokens a Z-token holds.

    Returns:
        Of each sequence `[n]`.
    """
    return [
        np.repeat(own.astype(np.float64) / size, size)
        for own, size in zip(shares, sizes, strict=True)
    ]
