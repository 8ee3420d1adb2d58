"""Lists separated by commas, as options give them."""

from __future__ import annotations

from ztok_rag.errors import DataError


def names(text: str) -> tuple[str, ...]:
    """The parts of a list separated by commas."""
    return tuple(name for part in text.split(",") if (name := part.strip()))


def numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, names(text)))
    except ValueError as error:
        raise DataError(f"expected numbers separated by commas, got {text!r}.") from error
