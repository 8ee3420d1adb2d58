"""Errors that name their cause and the remedy. All derive from `ZtokError`."""

from __future__ import annotations

import math
import numbers


class ZtokError(Exception):
    """Base of every error this package raises on bad input or a bad environment."""


class CheckpointError(ZtokError):
    """A checkpoint or base LLM is missing, damaged, or does not fit the other."""


class SequenceError(ZtokError):
    """A `ZSequence` is malformed, or was made by another checkpoint."""


class HandleError(ZtokError):
    """A handle in a prompt is forged, edited, or belongs to another installation."""


class DataError(ZtokError):
    """A training or evaluation record is malformed, or a task is unknown."""


class ServerError(ZtokError):
    """A server cannot be reached, or refuses or fails to answer."""


def check_rate(rate: float, highest: float = math.inf) -> None:
    """Make sure that a rate is source tokens per Z-token, 1 to `highest`.

    Raises:
        ZtokError: it is not. Below 1 it may be a share of tokens to keep, as of LLMLingua, and the
            message says which rate that is.
    """
    if isinstance(rate, bool) or not isinstance(rate, numbers.Real):
        raise ZtokError(f"the rate must be a number, not {rate!r}.")
    if 1 <= rate <= highest and math.isfinite(rate):
        return
    meant = round(1 / rate, 2) if 0 < rate < 1 else math.inf
    if meant <= min(highest, 1000):
        raise ZtokError(
            f"rate={rate:g}: did you mean rate={meant:g}? A rate is source tokens per Z-token, at "
            "least 1."
        )
    limit = "at least 1" if math.isinf(highest) else f"from 1 to {highest:g}"
    raise ZtokError(f"the rate must be {limit}, not {rate:g}.")
