"""Arms: the ways of giving a model its context that are compared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ztok_rag.errors import DataError

ARM_NAMES = ("none", "text", "text-reader", "ztok", "ztok-focus", "ztok-twice")
"""The arms that need only a checkpoint."""

Z_TOKEN_ARMS = ("ztok", "ztok-focus", "ztok-twice")
"""Those that read Z-tokens: by content alone, by the question, and in two looks."""

COPYING = "+copying"
"""End of the name of an arm that reads text, and whose answers are drawn to it."""

_WITHOUT_RATE = ("none", "text", "text-reader")


class Shorten(ABC):
    """A method that shortens the chunks retrieved for a question to a text."""

    @abstractmethod
    def __call__(self, question: str, chunks: Sequence[str], budget: int) -> str:
        """The text, of at most `budget` tokens."""

    def prepare(self, chunks: Sequence[str]) -> None:  # noqa: B027
        """Compute what is stored of chunks before there is a question. By default, nothing."""

    def stored_bytes(self, chunks: Sequence[str]) -> int:
        """Bytes of what is stored of chunks. By default, of their text."""
        return sum(utf8_bytes(chunk) for chunk in chunks)


@dataclass(frozen=True)
class Arm:
    """One way of giving a model its context.

    Attributes:
        name: one of `ARM_NAMES`, or of a method that shortens text, whose end may be `COPYING`.
        rate: source tokens per context position; 1 for raw text, `None` without context.
        adapter: `"read"` is the trained reader; `None` the plain base LLM.
        shorten: the method that shortens the chunks to the token budget of the rate, if any.
    """

    name: str
    rate: float | None
    adapter: str | None
    shorten: Shorten | None = field(default=None, compare=False, repr=False)

    @property
    def reads_z_tokens(self) -> bool:
        """Whether the context is Z-tokens."""
        return self.name in Z_TOKEN_ARMS

    @property
    def copies_text(self) -> bool:
        """Whether answers are drawn to the text that is read, as otherwise to Z-tokens."""
        return self.name.endswith(COPYING)

    @property
    def label(self) -> str:
        """The name, with the rate where an arm may have several."""
        if self.rate is None or self.name.removesuffix(COPYING) in _WITHOUT_RATE:
            return self.name
        return f"{self.name} {self.rate:g}x"


def make_arms(
    names: Sequence[str],
    rates: Sequence[float],
    shorteners: Mapping[str, Shorten] | None = None,
) -> list[Arm]:
    """Make the arms of the given names; Z-tokens and shortened text once per rate.

    Args:
        names: of the arms. Those that give the trained reader text may end in `COPYING`.
        rates: source tokens per context position.
        shorteners: methods that shorten text, by name. The trained reader reads their output.

    Raises:
        DataError: an unknown arm, a rate below 1, or no arm left.
    """
    shorteners = shorteners or {}
    known = ", ".join((*ARM_NAMES, *shorteners))
    distinct = list(dict.fromkeys(map(float, rates)))
    arms = []
    for name in dict.fromkeys(names):
        method = name.removesuffix(COPYING)
        if name == "none":
            arms.append(Arm(name, None, "read"))
        elif name == "text":
            arms.append(Arm(name, 1.0, None))
        elif method == "text-reader":
            arms.append(Arm(name, 1.0, "read"))
        elif name in Z_TOKEN_ARMS:
            arms += [Arm(name, rate, "read") for rate in distinct]
        elif method in shorteners:
            arms += [Arm(name, rate, "read", shorteners[method]) for rate in distinct]
        else:
            raise DataError(f"unknown arm {name!r}; the arms are {known}.")
    if bad := [rate for rate in rates if not rate >= 1]:
        raise DataError(f"a rate is at least 1 source token per Z-token, not {bad[0]:g}.")
    if not arms:
        raise DataError(f"no arm is left to run; the arms are {known}.")
    return arms


def utf8_bytes(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text.encode("utf-8", "surrogatepass"))
