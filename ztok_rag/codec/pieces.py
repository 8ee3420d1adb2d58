"""A text while it is written, in pieces that will not change any more."""

from __future__ import annotations

from collections.abc import Sequence


class Pieces:
    """Cuts a growing text into pieces; together they are the text before the first stop string.

    Attributes:
        stopped: whether a stop string was found. No piece follows.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._stop = stop
        self._sent = 0
        # Text that might yet turn out to begin a stop string is held back.
        self._held = max((len(s) for s in stop), default=1) - 1

    def take(self, text: str, *, whole: bool = False) -> str:
        """The next piece, empty where nothing is sure yet.

        Args:
            text: as it is by now; it begins with what it was before.
            whole: whether it will not grow any more.
        """
        ready = before(text, self._stop)
        self.stopped = ready != text
        if not self.stopped and not whole:
            # A trailing replacement character is a letter whose bytes are not all here yet.
            ready = text[: len(text) - self._held].removesuffix("\ufffd")
        piece = ready[self._sent :]
        self._sent += len(piece)
        return piece


def before(text: str, stop: Sequence[str]) -> str:
    """The text up to the first stop string in it."""
    ends = [at for at in (text.find(s) for s in stop) if at >= 0]
    return text[: min(ends)] if ends else text
