"""How many source tokens per Z-token each retrieved text gets within a total budget."""

from __future__ import annotations

import math
from collections.abc import Sequence

RATES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Rates to choose from; 1 is the raw text."""

_STRAY = 1.1  # a window's Z-tokens may exceed `tokens / rate` by this factor


def cost(source_tokens: int, rate: float, window: int = 256) -> int:
    """Most positions that a text takes at a rate."""
    if rate <= 1:
        return source_tokens
    windows = math.ceil(source_tokens / window)
    return min(source_tokens, math.ceil(_STRAY * source_tokens / rate) + windows)


def plan_rates(
    sizes: Sequence[int],
    overheads: Sequence[int],
    budget: int,
    *,
    window: int = 256,
) -> list[float | None]:
    """Share a budget out over texts, the best first.

    A text at place `i` is entitled to a share in proportion to `1 / (1 + i)` of what is left,
    and gets the lowest rate that this pays for. What one does not use passes on, and what is
    left in the end betters the first texts. A text that not even the highest rate fits in is
    left out.

    Args:
        sizes: source tokens of each text, best first.
        overheads: positions that each takes besides, such as its metadata.
        budget: positions in all.
        window: source tokens per window of the compressor.

    Returns:
        A rate of `RATES` for each text; `None` where it is left out.
    """
    rates: list[float | None] = []
    weights = [1 / (1 + place) for place in range(len(sizes))]
    left = budget
    for place, (size, overhead) in enumerate(zip(sizes, overheads, strict=True)):
        share = left * weights[place] / sum(weights[place:])
        prices = {rate: overhead + cost(size, rate, window) for rate in RATES}
        chosen = next((rate for rate in RATES if prices[rate] <= share), None)
        if chosen is None:
            chosen = next((rate for rate in reversed(RATES) if prices[rate] <= left), None)
        rates.append(chosen)
        left -= prices[chosen] if chosen is not None else 0
    for place, rate in enumerate(rates):
        if rate is None:
            continue
        now = cost(sizes[place], rate, window)
        for better in RATES:
            more = cost(sizes[place], better, window) - now
            if better < rate and more <= left:
                rates[place] = better
                left -= more
                break
    return rates


def count_fitting(
    sizes: Sequence[int], overheads: Sequence[int], budget: int, *, window: int = 256
) -> int:
    """How many of the texts, best first, fit into the budget together at the highest rate."""
    left = budget
    for place, (size, overhead) in enumerate(zip(sizes, overheads, strict=True)):
        left -= overhead + cost(size, RATES[-1], window)
        if left < 0:
            return place
    return len(sizes)
