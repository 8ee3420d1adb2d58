"""Arguments are checked by name: an unknown one is an error, never ignored."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from ztok_rag.errors import ZtokError


def parameters(function: Callable[..., Any]) -> frozenset[str]:
    """Names of the arguments that a function declares, `**kwargs` left out."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    declared = inspect.signature(function).parameters.values()
    return frozenset(p.name for p in declared if p.kind in named) - {"self"}


def refuse_unknown(
    owner: str,
    given: Iterable[str],
    known: Collection[str],
    renamed: Mapping[str, str] | None = None,
) -> None:
    """Check the names of keyword arguments.

    Args:
        owner: class or method that was called, for the message.
        given: names that it got.
        known: names that it takes.
        renamed: former names, with what they are called now.

    Raises:
        ZtokError: a name is not known.
    """
    for name in given:
        if name in known:
            continue
        if renamed is not None and name in renamed:
            raise ZtokError(f"{owner} has no argument {name!r}; it is now {renamed[name]!r}.")
        raise ZtokError(f"{owner} has no argument {name!r}; it takes {', '.join(sorted(known))}.")


def refuse_unknown_fields(
    owner: type[BaseModel], given: Iterable[str], renamed: Mapping[str, str] | None = None
) -> None:
    """As `refuse_unknown`, for a pydantic class: it takes its arguments and inherited fields."""
    known = parameters(owner.__init__) | owner.model_fields.keys()
    refuse_unknown(owner.__name__, given, known, renamed)
