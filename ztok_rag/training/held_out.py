"""Scores on held-out data without generating: how well each next token is predicted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ztok_rag.codec.prompts import QA_TEMPLATE
from ztok_rag.training.batches import BatchSettings, PackedBatches
from ztok_rag.training.examples import Kind
from ztok_rag.training.objective import Objective
from ztok_rag.training.passages import Passage

HELD_OUT = BatchSettings(
    reconstruct=0.0, together=(1,), distractors=0, continuation=1.0, drop_context=0.0, focus=0.0,
    templates=(QA_TEMPLATE,),
)  # fmt: skip
"""Every question once, by the plain template, of one passage at a time."""


@dataclass
class TokenScores:
    """Predictions of one kind, summed over each of `n` passages.

    Attributes:
        nats: `[n]` sum of the cross-entropies.
        right: `[n]` tokens that were the likeliest.
        tokens: `[n]` tokens predicted.
    """

    nats: NDArray[np.float64]
    right: NDArray[np.float64]
    tokens: NDArray[np.float64]

    @property
    def mean_nats(self) -> float:
        """Nats per token."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def accuracy(self) -> float:
        """Share of tokens predicted right."""
        return float(self.right.sum() / self.tokens.sum())


def held_out_batches(
    passages: Sequence[Passage], tokenizer: Any, *, batch_tokens: int = 1600
) -> PackedBatches:
    """Batches that ask every question once by the plain template, of one passage at a time."""
    settings = dataclasses.replace(HELD_OUT, batch_tokens=batch_tokens)
    return PackedBatches(passages, tokenizer, settings, seed=0)


@torch.inference_mode()
def score_tokens(
    objective: Objective, batches: PackedBatches, rate: float, *, adapter: str = "read"
) -> dict[Kind, TokenScores]:
    """Score one epoch of `batches`, teacher-forced."""
    sums: dict[Kind, list[NDArray[np.float64]]] = {}
    for index in range(batches.batches_per_epoch):
        examples, _ = batches[index]
        predictions = objective.predict(examples, rate, adapter=adapter)
        for kind in Kind:
            chosen = predictions.kinds == kind
            if not bool(chosen.any()):
                continue
            owner = predictions.examples[chosen]
            table = torch.stack(
                [
                    predictions.nats[chosen].double(),
                    predictions.right[chosen].double(),
                    torch.ones_like(owner, dtype=torch.float64),
                ]
            )
            total = table.new_zeros(3, len(examples)).index_add(1, owner, table).cpu().numpy()
            sums.setdefault(kind, []).append(total[:, total[2] > 0])
    joined = {kind: np.concatenate(parts, axis=1) for kind, parts in sums.items()}
    return {kind: TokenScores(*table) for kind, table in joined.items()}
