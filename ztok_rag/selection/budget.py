"""Rates of retrieved texts that share a budget, chosen by their rank."""

from __future__ import annotations

import math
from collections.abc import Sequence

BUDGET_RATES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Rates that a text may be read at; 1 is the raw text."""

_TOLERANCE = 1.1  # a window may have this many times `tokens / rate` Z-tokens


def cost(source_tokens: int, rate: float, window: int = 256) -> int:
    """The most input positions that a text takes at a rate.

    Args:
        source_tokens: tokens of the text.
        rate: source tokens per Z-token.
        window: source tokens per window of the compressor.
    """
    if rate <= 1:
        return source_tokens
    windows = math.ceil(source_tokens / window)
    return min(source_tokens, math.ceil(_TOLERANCE * source_tokens / rate) + windows)


def plan_rates(
    sizes: Sequence[int],
    overheads: Sequence[int],
    budget: int,
    *,
    window: int = 256,
) -> list[float | None]:
    """Choose a rate for each of some texts within a budget.

    The text of rank `i`, from 0, has a share in proportion to `1 / (1 + i)` of what the texts
    before it left, and gets the lowest rate that its share pays for. What remains in the end
    lowers the rates of the first texts. A text that does not fit at the highest rate is left out.

    Args:
        sizes: source tokens of each text, best text first.
        overheads: further positions of each text, such as its metadata.
        budget: the most positions in all.
        window: source tokens per window of the compressor.

    Returns:
        A rate of `BUDGET_RATES` for each text; `None` for a text that is left out.
    """
    rates: list[float | None] = []
    weights = [1 / (1 + place) for place in range(len(sizes))]
    left = budget
    for place, (size, overhead) in enumerate(zip(sizes, overheads, strict=True)):
        share = left * weights[place] / sum(weights[place:])
        prices = {rate: overhead + cost(size, rate, window) for rate in BUDGET_RATES}
        chosen = next((rate for rate in BUDGET_RATES if prices[rate] <= share), None)
        if chosen is None:
            chosen = next((rate for rate in reversed(BUDGET_RATES) if prices[rate] <= left), None)
        rates.append(chosen)
        left -= prices[chosen] if chosen is not None else 0
    for place, rate in enumerate(rates):
        if rate is None:
            continue
        now = cost(sizes[place], rate, window)
        for better in BUDGET_RATES:
            more = cost(sizes[place], better, window) - now
            if better < rate and more <= left:
                rates[place] = better
                left -= more
                break
    return rates


def count_fitting(
    sizes: Sequence[int], overheads: Sequence[int], budget: int, *, window: int = 256
) -> int:
    """The number of texts that fit into a budget together at the highest rate.

    Args:
        sizes: source tokens of each text, best text first.
        overheads: further positions of each text.
        budget: the most positions in all.
        window: source tokens per window of the compressor.
    """
    left = budget
    for place, (size, overhead) in enumerate(zip(sizes, overheads, strict=True)):
        left -= overhead + cost(size, BUDGET_RATES[-1], window)
        if left < 0:
            return place
    return len(sizes)
