"""What one training example is: a shared context and what should follow it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from ztok_rag.codec.model import Focus


class Kind(IntEnum):
    """What a predicted token belongs to."""

    ANSWER = 0
    QUESTION = 1
    RECONSTRUCTION = 2
    CONTINUATION = 3


@dataclass(frozen=True)
class Window:
    """Source tokens that the compressor turns into Z-tokens.

    Attributes:
        ids: of the tokens.
        uses: of each token, whether it is part of an answer, and whether a question names it;
            `None` where there are no questions.
        focus: what to spend more Z-tokens on, as a question would ask for; no parts where no
            question asks.
    """

    ids: tuple[int, ...]
    uses: tuple[tuple[int, int], ...] | None = None
    focus: Focus | None = None


@dataclass(frozen=True, eq=False)
class Composed:
    """Z-tokens ready to be read.

    Attributes:
        codes: int64 `[n_z, depth]` as in `ZSequence.codes`.
        source_tokens: tokens of the text they were made of.
    """

    codes: NDArray[np.int64]
    source_tokens: int


@dataclass(frozen=True)
class Branch:
    """Token ids of a prompt and of what should follow it."""

    prompt: list[int]
    target: list[int]
    kind: Kind


@dataclass
class Example:
    """A shared prefix of text and Z-tokens, then branches that see the prefix and themselves."""

    prefix: list[list[int] | Window | Composed]
    branches: list[Branch]
