"""Work that would block the event loop, in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of a function that runs in a thread.

    A `StopIteration` would leave the caller waiting for ever, as no future takes it; it comes out
    as a `RuntimeError`.
    """

    def run() -> T:
        try:
            return function(*args, **kwargs)
        except StopIteration as error:
            raise RuntimeError("an iterator ended too soon") from error

    return await asyncio.to_thread(run)
