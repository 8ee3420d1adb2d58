"""Rates of retrieved texts that share a budget, chosen by their rank."""

from __future__ import annotations

from collections.abc import Sequence

from ztok_rag.codec.allocation import count_z_tokens

BUDGET_RATES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Rates that a text may be read at; 1 is the raw text."""


def cost(source_tokens: int, rate: float, slots: int) -> int:
    """Input positions that a text takes at a rate.

    Args:
        source_tokens: tokens of the text.
        rate: source tokens per Z-token.
        slots: most tokens that a Z-token holds.
    """
    return source_tokens if rate <= 1 else count_z_tokens(source_tokens, rate, slots)


def plan_rates(
    sizes: Sequence[int], overheads: Sequence[int], budget: int, slots: int
) -> list[float | None]:
    """Choose a rate for each of some texts within a budget.

    The text of rank `i`, from 0, has a share in proportion to `1 / (1 + i)` of what the texts
    before it left, and gets the lowest rate that its share pays for. What remains in the end
    lowers the rates of the first texts. A text that does not fit at the highest rate is left out.

    Args:
        sizes: source tokens of each text, best text first.
        overheads: further positions of each text, such as its metadata.
        budget: the most positions in all.
        slots: most tokens that a Z-token holds.

    Returns:
        A rate of `BUDGET_RATES` for each text; `None` for a text that is left out.
    """
    rates: list[float | None] = []
    weights = [1 / (1 + place) for place in range(len(sizes))]
    left = budget
    for place, (size, overhead) in enumerate(zip(sizes, overheads, strict=True)):
        share = left * weights[place] / sum(weights[place:])
        prices = {rate: overhead + cost(size, rate, slots) for rate in BUDGET_RATES}
        chosen = next((rate for rate in BUDGET_RATES if prices[rate] <= share), None)
        if chosen is None:
            chosen = next((rate for rate in reversed(BUDGET_RATES) if prices[rate] <= left), None)
        rates.append(chosen)
        left -= prices[chosen] if chosen is not None else 0
    for place, rate in enumerate(rates):
        if rate is None:
            continue
        now = cost(sizes[place], rate, slots)
        for better in BUDGET_RATES:
            more = cost(sizes[place], better, slots) - now
            if better < rate and more <= left:
                rates[place] = better
                left -= more
                break
    return rates


def count_fitting(sizes: Sequence[int], overheads: Sequence[int], budget: int, slots: int) -> int:
    """The number of texts that fit into a budget together at the highest rate.

    Args:
        sizes: source tokens of each text, best text first.
        overheads: further positions of each text.
        budget: the most positions in all.
        slots: most tokens that a Z-token holds.
    """
    left = budget
    for place, (size, overhead) in enumerate(zip(sizes, overheads, strict=True)):
        left -= overhead + cost(size, BUDGET_RATES[-1], slots)
        if left < 0:
            return place
    return len(sizes)
