"""The text files of a folder, and what was left out of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ztok_rag.errors import DataError
from ztok_rag.files import decode, line_feeds, read_bytes, repair, show

_NAMED = 5


@dataclass
class FolderTexts:
    """What a folder holds.

    Attributes:
        texts: by path relative to the folder.
        left_out: relative path and cause of each file that is not among them.
    """

    texts: dict[str, str] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def report(self) -> str:
        """How many files were left out, and which are the first; empty if there are none."""
        if not self.left_out:
            return ""
        count = len(self.left_out)
        named = ", ".join(f"{show(name)} ({cause})" for name, cause in self.left_out[:_NAMED])
        more = f", and {count - _NAMED} more" if count > _NAMED else ""
        return f"left out {count} file{'s' * (count != 1)}: {named}{more}."


def read_folder(folder: Path, excluded: Path) -> FolderTexts:
    """Read the text files of a folder and its subfolders, without hidden ones.

    Nothing but regular files is opened, and links to folders are not followed. A name that is not
    UTF-8 has U+FFFD in its place.

    Args:
        folder: the folder.
        excluded: a folder whose files do not count; it may be inside the other.

    Raises:
        DataError: `folder` is not a folder.
    """
    if not folder.is_dir():
        raise DataError(f"{show(folder)} is not a folder; name a folder of text files.")
    found = FolderTexts()
    for file in _files(folder, os.path.realpath(excluded), found):
        name = repair(file.relative_to(folder).as_posix())
        try:
            text = _read(file)
            if name in found.texts:
                raise DataError("shows as the name of another file")
        except DataError as error:
            found.left_out.append((name, str(error)))
        else:
            found.texts[name] = text
    return found


def _files(folder: Path, excluded: str, found: FolderTexts) -> Iterator[Path]:
    """All that is in a folder and is not a folder, in order; folders that do not open are noted."""

    def note(error: OSError) -> None:
        name = Path(os.fsdecode(error.filename)).relative_to(folder).as_posix()
        found.left_out.append((name, f"cannot be read: {error.strerror}"))

    for place, folders, files in os.walk(folder, onerror=note):
        here = Path(place)
        links = [name for name in folders if (here / name).is_symlink()]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted([*files, *links]):
            real = os.path.realpath(here / name)
            if not name.startswith(".") and not Path(real).is_relative_to(excluded):
                yield here / name


def _read(file: Path) -> str:
    """The text of a file.

    Raises:
        DataError: it is no text file; the message is the cause alone.
    """
    try:
        mode = file.stat().st_mode
    except OSError as error:
        link = "a link that leads nowhere" if file.is_symlink() else error.strerror
        raise DataError(f"{link}") from error
    if not stat.S_ISREG(mode):
        raise DataError("a link to a folder" if stat.S_ISDIR(mode) else "not a regular file")
    try:
        data = read_bytes(file)
    except DataError as error:
        cause = getattr(error.__cause__, "strerror", None)
        raise DataError(f"cannot be read{f': {cause}' if cause else ''}") from error
    try:
        text = line_feeds(decode(data, file))
    except DataError as error:
        raise DataError("not UTF-8 text") from error
    if "\0" in text:
        raise DataError("binary")
    if not text.strip():
        raise DataError("no words")
    return text
