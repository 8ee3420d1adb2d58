"""What callers give: lists that are read once, text that files can hold, and paths."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from ztok_rag.errors import ZtokError
from ztok_rag.files import repair

T = TypeVar("T")


def as_list(items: Iterable[T], what: str) -> list[T]:
    """The items as a list. An iterator is read here, once.

    Args:
        items: any iterable but a string, which would come apart into characters.
        what: names them in the plural, for the message.

    Raises:
        ZtokError: it is a string, or cannot be iterated over.
    """
    return list(as_iterator(items, what))


def as_iterator(items: Iterable[T], what: str) -> Iterator[T]:
    """The items one after the other; arguments and errors are those of `as_list`."""
    # A pydantic model, such as one LlamaIndex node, iterates over its fields.
    is_one = isinstance(items, str | bytes) or hasattr(items, "model_fields")
    if is_one or not isinstance(items, Iterable):
        raise ZtokError(
            f"{what} are given as a list, not as one {type(items).__name__}; put it in a list."
        )
    return iter(items)


def repair_surrogates(text: str, name: str) -> str:
    """`text` with halves of surrogate pairs, which no file can hold, replaced by U+FFFD.

    PDF readers and broken JSON leave such halves. Two that belong together become their character.

    Args:
        text: the text.
        name: where it is from, for the warning.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        warnings.warn(
            f"{name} has half a surrogate pair at character {error.start}; it is read as U+FFFD.",
            UserWarning,
            stacklevel=4,
        )
        return repair(text)
    return text


def absolute_path(path: str | Path) -> Path:
    """The path from the root of the file system, so that it outlives `os.chdir`.

    A `~` at its beginning is the home folder, and `$NAME` is a name like any other.

    Raises:
        ZtokError: it begins with `~`, and there is no home folder.
    """
    path = Path(path)
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        if path.parts[0] != "~":  # no user has this name, so it is the name of a folder
            return path.absolute()
        raise ZtokError(f"there is no home folder for {path}; give a whole path.") from error
