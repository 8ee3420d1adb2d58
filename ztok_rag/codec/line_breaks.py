"""Texts with their lines joined: an answer goes on over the end of a line as over a space."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ztok_rag.codec.base import decode_exactly, tokenize_exactly
from ztok_rag.codec.sequence import IntArray, ZSequence

_BREAK = re.compile(r"(?<=\S)[^\S\n]*\n[^\S\n]*(?=\S)")


class JoinedLines(NamedTuple):
    """Tokens of a text that has spaces in place of its line breaks.

    Attributes:
        ids: `[n]` the tokens.
        owners: `[n]` of each, the token that holds its last character in the text as it was.
    """

    ids: IntArray
    owners: IntArray


def join_lines(z: ZSequence, tokenizer: Any) -> list[JoinedLines]:
    """What a sequence holds, with its lines joined; empty lines stay.

    Args:
        z: the sequence.
        tokenizer: of the base LLM.

    Returns:
        One for each run of tokens without a gap that has a line break. `owners` count among all
        tokens that are held.
    """
    texts = [(run, decode_exactly(tokenizer, z.ids[run])) for run in z.runs]
    return [_joined(z, run, text, tokenizer) for run, text in texts if _BREAK.search(text)]


def runs_with_joined_lines(z: ZSequence, lines: Sequence[JoinedLines]) -> list[IntArray]:
    """Token ids of each run of tokens without a gap, with its lines joined.

    Args:
        z: the sequence.
        lines: `join_lines` of it.
    """
    joined = {own.owners[0]: own.ids for own in lines}
    return [
        next((joined[at] for at in joined if run.start <= at < run.stop), z.ids[run])
        for run in z.runs
    ]


def _joined(z: ZSequence, run: slice, text: str, tokenizer: Any) -> JoinedLines:
    """A run of tokens that a sequence holds, whose text has line breaks, without these."""
    own, tokens = tokenize_exactly(tokenizer, [text, _BREAK.sub(" ", text)])
    breaks = [match.span() for match in _BREAK.finditer(text)]
    dropped = np.concatenate([np.arange(start + 1, end) for start, end in breaks])
    characters = np.delete(np.arange(len(text)), dropped)  # of `text`, for each that is left
    last = characters[np.maximum(tokens.spans[:, 1], 1) - 1]
    owners = np.searchsorted(z.run_starts(run, own), last, side="right") - 1
    return JoinedLines(tokens.ids, run.start + owners)
