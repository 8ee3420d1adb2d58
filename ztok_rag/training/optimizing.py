"""One step of an optimizer, and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer

from ztok_rag.errors import DataError


def warmup_cosine(step: int, *, steps: int, warmup: int, floor: float) -> float:
    """Share of the peak learning rate after `step` others: a linear rise, then a cosine.

    Args:
        step: number of steps before.
        steps: of the run.
        warmup: of the rise, at most a quarter of the run.
        floor: share at the end.
    """
    rise = min(1.0, (step + 1) / min(warmup, max(1, steps // 4)))
    return rise * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / steps)))


def take_step(
    optimizer: Optimizer, parameters: Iterable[nn.Parameter], *, lr: float, clip: float, step: int
) -> float:
    """Clip the gradients, change the parameters, and forget the gradients.

    Args:
        optimizer: of the parameters.
        parameters: those that have gradients.
        lr: learning rate of this step.
        clip: longest gradient.
        step: number of the step, for the error.

    Returns:
        Length of the gradient before it was clipped.

    Raises:
        DataError: the gradient is not finite.
    """
    norm = float(nn.utils.clip_grad_norm_(parameters, clip, foreach=True))
    if not math.isfinite(norm):
        raise DataError(f"the loss is not finite at step {step}; lower --lr.")
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
