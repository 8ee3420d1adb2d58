"""Files that are read once and whole, the text in their bytes, and names as they are shown."""

from __future__ import annotations

import codecs
import hashlib
import json
import os
import sys
from pathlib import Path

from ztok_rag.errors import DataError

DIGESTS = "digests.json"
"""Name of the file of `write_digests`."""

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


def write_digests(folder: Path) -> None:
    """Write the digests of all files in a folder into one more, for `check_digests`."""
    text = json.dumps(_digests(folder), indent=2) + "\n"
    (folder / DIGESTS).write_text(text, encoding="utf-8")


def check_digests(folder: Path) -> None:
    """Make sure that the files of a folder are those of which `write_digests` wrote.

    Without a file of digests, as earlier versions left none, nothing is checked. Digests find
    damage, not intent: whoever can change a file can change its digest.

    Raises:
        ValueError: a file is missing, or another, or the digests cannot be read.
        OSError: a file cannot be read.
    """
    if not (folder / DIGESTS).is_file():
        return
    wanted = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
    found = _digests(folder)
    if not isinstance(wanted, dict) or not wanted:
        raise ValueError(f"{DIGESTS} holds no digests")
    for name, digest in wanted.items():
        if found.get(name) != digest:
            raise ValueError(f"{show(name)} is not the file that was written")


def _digests(folder: Path) -> dict[str, str]:
    """BLAKE2b digests of 16 bytes, by the names of a folder's files."""
    digests = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != DIGESTS:
            with path.open("rb") as file:
                made = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
            digests[path.name] = made.hexdigest()
    return digests
