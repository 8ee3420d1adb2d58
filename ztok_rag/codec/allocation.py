"""Allocation: which source tokens each Z-token of a text holds."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_STEPS = 40


def count_z_tokens(tokens: int, rate: float, slots: int) -> int:
    """How many Z-tokens a text gets at a rate.

    Args:
        tokens: source tokens of the text.
        rate: source tokens per Z-token asked for, at least 1.
        slots: most tokens that one Z-token holds.

    Returns:
        `tokens / rate`, rounded. Up to a rate of `slots` it is enough to hold every token.
    """
    least = math.ceil(tokens / slots) if rate <= slots else 1
    return min(tokens, max(1, round(tokens / rate), least))


def allocate(weights: FloatArray, count: int, slots: int) -> IntArray:
    """Cut tokens into exactly `count` spans of about equal weight.

    A token weighs at most as much as one span, and at least so much that no span has more than
    `slots` tokens; within these bounds the weights decide. The scale of the weights is searched
    for that gives the count asked for.

    Args:
        weights: `[n]` positive weight of each token.
        count: spans wanted, from `n / slots` to `n`.
        slots: most tokens in a span.

    Returns:
        `[n]` index of each token's span: starts at 0, rises by 0 or 1.
    """
    n = len(weights)
    if count >= n:
        return np.arange(n)
    share = weights / weights.sum()
    low, high = 0.25, 4.0 * n
    for _ in range(_STEPS):
        scale = math.sqrt(low * high)
        mass = np.clip(share * (count * scale), 1 / (slots - 0.01), 1.0)
        spans = _split_long(np.floor(np.cumsum(mass) - mass / 2), slots)
        found = int(spans[-1]) + 1
        if found == count:
            return spans
        low, high = (scale, high) if found < count else (low, scale)
    return np.arange(n) * count // n  # so near to `n / slots` that only even spans fit


def _split_long(labels: FloatArray, slots: int) -> IntArray:
    """Spans from rising labels; one of more than `slots` tokens is cut into several."""
    index = np.arange(len(labels))
    new = np.diff(labels, prepend=-1.0) != 0
    starts = np.maximum.accumulate(np.where(new, index, 0))
    cut: IntArray = np.cumsum(new | ((index - starts) % slots == 0)) - 1
    return cut


def choose_held(weights: FloatArray, predicted: NDArray[np.bool_], count: int) -> IntArray:
    """Which tokens a text keeps where its Z-tokens cannot hold them all.

    Tokens that the base LLM predicts from those before are left out first, then the lightest.

    Args:
        weights: `[n]` weight of each token.
        predicted: `[n]` whether the base predicts it with a margin.
        count: tokens to keep.

    Returns:
        Sorted indices of the tokens that are kept, `[min(n, count)]`.
    """
    order = np.lexsort((-weights, predicted))
    kept: IntArray = np.sort(order[:count])
    return kept
