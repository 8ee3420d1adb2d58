"""A reconstruction beside its source, word by word, as HTML."""

from __future__ import annotations

import difflib
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

_WORD = re.compile(r"(\w+|[^\w\s])(\s*)")


@dataclass(frozen=True)
class Difference:
    """A reconstruction as HTML with its differences marked, and how many words differ."""

    page: str
    kept: int
    lost: int
    invented: int


def difference(source: str, back: str) -> Difference:
    """The reconstruction of `source`, with the words of either text that the other lacks."""
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
    """Words that one text has alone, in an element, then their white space, at least `gap`."""
    if not words:
        return ""
    run = "".join(word + space for word, space in words)
    bare = run.rstrip()
    return f"<{tag}>{escape(bare)}</{tag}>{escape(run[len(bare) :] or gap)}"


def escape(text: str) -> str:
    """`text` as HTML; a carriage return, which parsers make a line feed, as a reference."""
    return html.escape(text).replace("\r", "&#13;")
