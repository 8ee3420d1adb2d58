"""Files that are read once and whole, the text in their bytes, and names as they are shown."""

from __future__ import annotations

import codecs
import os
import sys
from pathlib import Path

from ztok_rag.errors import DataError

STANDARD_INPUT = "-"
"""The name that stands for standard input."""

# UTF-32 comes first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file, which is opened once, so that it may be a pipe.

    Args:
        path: of the file; `-` is standard input.

    Raises:
        DataError: it cannot be read.
    """
    try:
        if str(path) != STANDARD_INPUT:
            return Path(path).read_bytes()
        if sys.stdin is None:
            raise DataError("standard input is closed; name a file.")
        return sys.stdin.buffer.read()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        cause = getattr(error, "strerror", None) or error
        raise DataError(
            f"cannot read {show(path)}: {cause}; name a file that can be read."
        ) from error


def read_text(path: str | Path) -> str:
    """The text of a file, without a byte order mark, with its line ends as line feeds.

    Raises:
        DataError: it cannot be read, or is not text.
    """
    return line_feeds(decode(read_bytes(path), path))


def decode(data: bytes, name: str | Path) -> str:
    """The text in bytes, without a byte order mark; line ends stay as they are.

    Args:
        data: UTF-8; or UTF-16 or UTF-32, which begin with a byte order mark.
        name: of the file, for the message.

    Raises:
        DataError: they are not text.
    """
    encoding = marked_encoding(data) or "utf-8"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        kind = encoding.removesuffix("-sig").upper()
        raise DataError(
            f"{show(name)} is not {kind} text (byte {error.start:,}); convert it first."
        ) from error


def marked_encoding(data: bytes) -> str | None:
    """The encoding that a byte order mark names; `None` without one."""
    return next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)


def line_feeds(text: str) -> str:
    """`text` with each CR LF and each lone CR as a line feed."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def is_pipe(path: str | Path) -> bool:
    """Whether a file can be read only once, and has no name of its own: a pipe, or `-`."""
    path = Path(path)
    return str(path) == STANDARD_INPUT or (path.exists() and not path.is_file())


def repair(text: str) -> str:
    """`text` without lone surrogates, which no file and no model can take.

    Arguments and names of files that are not in the locale's encoding have them. What is UTF-8 in
    truth is read as that; anything else becomes U+FFFD.
    """
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        pass
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def show(name: str | Path | os.PathLike[str]) -> str:
    """A name in one line, with U+FFFD for what cannot be printed."""
    text = repair(str(name))
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)
