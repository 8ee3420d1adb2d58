"""Answers in pieces, as they are passed on."""

from __future__ import annotations

from ztok_rag.storage.handle import HandleEscaper


class Cleaner:
    """Takes white space off both ends of a text in pieces, and escapes handles in it."""

    def __init__(self) -> None:
        self._escaper = HandleEscaper()
        self._started = False
        self._space = ""

    def take(self, piece: str) -> str:
        """What can be passed on once a piece has come."""
        text = self._space + piece if self._started else piece.lstrip()
        self._started = self._started or bool(text)
        ready = text.rstrip()
        self._space = text[len(ready) :]
        return self._escaper.take(ready)

    def rest(self) -> str:
        """What was held back of the text, which is whole now."""
        return self._escaper.rest()
