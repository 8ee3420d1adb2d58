"""Text of a prompt that its answer may copy, beside what the Z-tokens hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ztok_rag.codec.base import Tokens, tokenize_exactly
from ztok_rag.codec.sequence import ZSequence
from ztok_rag.inputs import repair_surrogates

_TURN = re.compile(r"^(?:question|query|answer|user|assistant):.*\n?", re.I | re.M)
_LONGEST_QUESTION = 64  # tokens


@dataclass(frozen=True)
class Told:
    """A text, and its tokens."""

    text: str
    tokens: Tokens

    def __len__(self) -> int:
        return len(self.tokens.ids)


def told_after(segments: Sequence[object], tokenizer: Any) -> Told | None:
    """The text after the Z-tokens, where it is too long to be a mere question.

    What is asked may be about it, as where the Z-tokens are examples. Questions and turns of a
    chat are left out: former answers are seldom the next one.

    Args:
        segments: of a prompt, in reading order; sequences, texts and others.
        tokenizer: of the base LLM.

    Returns:
        `None` for a short text, and where there are no Z-tokens.
    """
    at = [n for n, segment in enumerate(segments) if isinstance(segment, ZSequence)]
    after = segments[at[-1] + 1 :] if at else []
    text = _TURN.sub("", "".join(s for s in after if isinstance(s, str))).strip()
    (tokens,) = tokenize_exactly(tokenizer, [repair_surrogates(text, "the prompt")])
    return Told(text, tokens) if len(tokens.ids) > _LONGEST_QUESTION else None
