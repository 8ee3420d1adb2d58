"""Where the Z-tokens go: cutting a token sequence into spans of about equal information."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def target_count(
    information: FloatArray, rate: float, mean_information: float, elasticity: float
) -> int:
    """How many Z-tokens a window gets.

    A window as dense as the training text gets `tokens / rate`; a denser one more and a more
    redundant one fewer, within a share `elasticity` of that.

    Args:
        information: `[n]` predicted surprisal of each token, in nats.
        rate: source tokens per Z-token, at least 1.
        mean_information: the training text's mean, in nats per token.
        elasticity: largest relative deviation.
    """
    n = len(information)
    density = float(information.mean()) / mean_information - 1.0
    share = 1.0 + elasticity * math.tanh(2.0 * density) if rate > 1 else 1.0
    return min(n, max(1, round(n / rate * share)))


def segment(information: FloatArray, count: int, max_span: int) -> IntArray:
    """Cut `n` tokens into about `count` spans that carry about equal information.

    No span is longer than `max_span`, and a token richer than the mean span stays whole, so the
    number of spans can differ from `count` where the two conflict.

    Args:
        information: `[n]` positive weight of each token.
        count: number of spans wanted, 1 to n.
        max_span: most tokens in a span.

    Returns:
        `[n]` index of each token's span: starts at 0, rises by 0 or 1.
    """
    n = len(information)
    if count >= n:
        return np.arange(n)
    low, high = 0.0, float(information.sum())
    best, best_error = _fill(information, high, max_span), n
    for _ in range(30):
        budget = (low + high) / 2
        spans = _fill(information, budget, max_span)
        error = int(spans[-1]) + 1 - count
        if abs(error) < best_error:
            best, best_error = spans, abs(error)
        if error == 0:
            break
        low, high = (budget, high) if error > 0 else (low, budget)
    return best


def _fill(information: FloatArray, budget: float, max_span: int) -> IntArray:
    """Spans of `budget` information each; a token richer than that takes a span's worth."""
    clipped = np.minimum(information, budget)
    middle = np.cumsum(clipped) - clipped / 2
    spans = np.floor(middle / budget)
    index = np.arange(len(spans))
    starts = np.maximum.accumulate(np.where(np.diff(spans, prepend=-1) != 0, index, 0))
    new = (np.diff(spans, prepend=-1) != 0) | (
        (index > starts) & ((index - starts) % max_span == 0)
    )
    return np.cumsum(new) - 1


def select_anchors(information: FloatArray, spans: IntArray, anchors: int) -> IntArray:
    """Pick each span's most informative tokens, the most informative first.

    Args:
        information: `[n]` weight of each token.
        spans: `[n]` span index of each token, as `segment` returns.
        anchors: most tokens to pick per span.

    Returns:
        `[n_spans, anchors]` token positions; -1 where a span has fewer tokens.
    """
    n, n_spans = len(spans), int(spans[-1]) + 1
    starts = np.searchsorted(spans, np.arange(n_spans))
    rank = np.empty(n, dtype=np.int64)
    rank[np.lexsort((-information, spans))] = np.arange(n) - starts[spans]
    kept = np.flatnonzero(rank < anchors)
    picked = np.full((n_spans, anchors), -1, dtype=np.int64)
    picked[spans[kept], rank[kept]] = kept
    return picked


def outlast(
    information: FloatArray, spans: IntArray, counts: Sequence[int], max_span: int
) -> IntArray:
    """Which spans stay when neighbours are merged into ever fewer.

    The two neighbours that carry the least together are merged first, and the one with the more
    informative token stays. What stays at one count is thereby a part of what stays at a higher.

    Args:
        information: `[n]` positive weight of each token.
        spans: `[n]` span index of each token, as `segment` returns.
        counts: spans to stay, falling; a count is not reached where `max_span` forbids it.
        max_span: most tokens in a span.

    Returns:
        `[n_spans]` how many of the counts, from the first on, each span outlasts.
    """
    starts = np.searchsorted(spans, np.arange(int(spans[-1]) + 1))
    mass = np.add.reduceat(information, starts)
    peak = np.maximum.reduceat(information, starts)
    length = np.diff(starts, append=len(spans))
    alive = np.arange(len(starts))
    lasts = np.zeros(len(starts), dtype=np.int64)
    for count in counts:
        while len(alive) > count:
            joined = np.where(length[:-1] + length[1:] <= max_span, mass[:-1] + mass[1:], np.inf)
            left = int(joined.argmin())
            if joined[left] == np.inf:
                break
            right = left + 1
            alive[left] = alive[left if peak[left] >= peak[right] else right]
            for values, merge in ((mass, np.add), (length, np.add), (peak, np.maximum)):
                values[left] = merge(values[left], values[right])
            alive, mass, peak, length = (
                np.delete(values, right) for values in (alive, mass, peak, length)
            )
        lasts[alive] += 1
    return lasts
