"""Line breaks that end nothing: those of text that was wrapped to a width."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, groupby, pairwise

_WIDTHS = range(40, 121)  # characters, to which text is wrapped
_FEWEST = 2  # breaks
_MOST_OTHERS = 0.2  # of a paragraph's breaks, that stand where there was room for another word


def find_wraps(text: str) -> set[int]:
    """Where lines of a text end that go on in the next.

    A paragraph is wrapped where the first word of a line would not have fitted into the line
    before, whose longest tells how wide it may be. Lists, tables and code are not.

    Returns:
        Places of the line breaks.
    """
    lines = text.split("\n")
    starts = accumulate((len(line) + 1 for line in lines), initial=0)
    wraps: set[int] = set()
    for is_blank, own in groupby(
        zip(starts, lines, strict=False), lambda line: not line[1] or line[1].isspace()
    ):
        if not is_blank:
            paragraph = list(own)
            found = set(_full_lines(paragraph))
            if len(found) >= max(_FEWEST, (1 - _MOST_OTHERS) * (len(paragraph) - 1)):
                wraps |= found
    return wraps


def _full_lines(lines: list[tuple[int, str]]) -> Iterator[int]:
    """Where lines end that have no room for the next one's first word.

    Args:
        lines: where each begins in the text, and what stands in it.
    """
    width = max(len(line.rstrip()) for _, line in lines)
    if width not in _WIDTHS:
        return
    for (start, line), (_, following) in pairwise(lines):
        if len(line.rstrip()) + 1 + len(following.split(maxsplit=1)[0]) > width:
            yield start + len(line)
