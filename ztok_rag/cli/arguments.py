"""Values of options that are lists separated by commas."""

from __future__ import annotations

from ztok_rag.errors import DataError


def names(text: str) -> tuple[str, ...]:
    """The names in a list separated by commas; empty ones are left out."""
    return tuple(name for part in text.split(",") if (name := part.strip()))


def numbers(text: str) -> tuple[float, ...]:
    """The numbers in a list separated by commas.

    Raises:
        DataError: one of them is not a number.
    """
    try:
        return tuple(map(float, names(text)))
    except ValueError as error:
        raise DataError(f"expected numbers separated by commas, got {text!r}.") from error
