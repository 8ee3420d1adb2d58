"""The differences between a text and its reconstruction, by words, as HTML."""

from __future__ import annotations

import difflib
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

_WORD = re.compile(r"(\w+|[^\w\s])(\s*)")


@dataclass(frozen=True)
class Difference:
    """A reconstruction with its differences marked.

    Attributes:
        page: the reconstruction as HTML.
        kept: number of words in both texts.
        lost: number of words in the source only.
        invented: number of words in the reconstruction only.
    """

    page: str
    kept: int
    lost: int
    invented: int


def difference(source: str, back: str) -> Difference:
    """Compare a reconstruction with its source, word by word."""
    ours, theirs = _WORD.findall(source), _WORD.findall(back)
    matcher = difflib.SequenceMatcher(
        None, [word for word, _ in ours], [word for word, _ in theirs], autojunk=False
    )
    out: list[str] = []
    kept = lost = invented = 0
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            kept += b - a
            out += [escape(word + space) for word, space in theirs[c:d]]
            if d == len(theirs) and b < len(ours):
                out.append(ours[b - 1][1])
            continue
        lost += b - a
        invented += d - c
        out += [_change("del", ours[a:b], " " * (d > c)), _change("ins", theirs[c:d])]
    return Difference("".join(out), kept, lost, invented)


def _change(tag: str, words: Sequence[tuple[str, str]], gap: str = "") -> str:
    """An element of words that only one text has, then their white space, or `gap` if none."""
    if not words:
        return ""
    run = "".join(word + space for word, space in words)
    bare = run.rstrip()
    return f"<{tag}>{escape(bare)}</{tag}>{escape(run[len(bare) :] or gap)}"


def escape(text: str) -> str:
    """Escape a text for HTML, carriage returns included: parsers turn them into line feeds."""
    return html.escape(text).replace("\r", "&#13;")
