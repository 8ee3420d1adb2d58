"""Files and folders that a command writes: checked before its work, written after it."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path

from ztok_rag.codec.serialization import write_atomic
from ztok_rag.errors import ZtokError
from ztok_rag.files import repair, show

_STANDARD_OUTPUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def is_standard_output(path: Path) -> bool:
    """Whether a path names standard output."""
    return str(path) in _STANDARD_OUTPUT


def check_file(path: Path) -> None:
    """Make sure that `write_file` can write a file.

    Raises:
        ZtokError: it cannot.
    """
    if is_standard_output(path) or _is_fifo(path):
        return
    try:
        if path.exists() and not path.is_file():
            kind = "is a folder" if path.is_dir() else "is not a regular file"
            raise ZtokError(f"cannot write {show(path)}: it {kind}; name a file.")
        _try_folder(path.parent, f".{path.name}.")
    except (OSError, ValueError) as error:
        raise ZtokError(
            f"cannot write {show(path)}: {_cause(error)}; name a file in a folder that can be "
            "written, with room on its disk."
        ) from error


def check_folder(path: Path) -> None:
    """Make sure that files can be written into a folder, which may have to be made.

    Raises:
        ZtokError: they cannot.
    """
    if repair(str(path)) != str(path):  # FAISS and safetensors could not open it
        raise ZtokError(f"cannot write into {show(path)}: its name is not UTF-8; name another.")
    try:
        _try_folder(path, ".")
    except (OSError, ValueError) as error:
        raise ZtokError(
            f"cannot write into {show(path)}: {_cause(error)}; name a folder that can be written, "
            "with room on its disk."
        ) from error


def write_file(path: Path, data: bytes) -> None:
    """Write a file that is whole or not there; or standard output, or a named pipe.

    Raises:
        ZtokError: it cannot be written.
    """
    if is_standard_output(path):
        write_standard_output(data)
    elif _is_fifo(path):
        with path.open("wb") as file:
            file.write(data)
    else:
        write_atomic(path, data)


def write_standard_output(data: bytes) -> None:
    """Write bytes to standard output as they are."""
    sys.stdout.flush()
    # A stream that was replaced, as by a test, may have no bytes below its text.
    binary = getattr(sys.stdout, "buffer", None)
    if binary is None:
        sys.stdout.write(data.decode("utf-8", "replace"))
    else:
        binary.write(data)
    sys.stdout.flush()


def literal(path: Path) -> Path:
    """`path` so that what opens it takes a `~` at its beginning for a character of the name."""
    return Path.cwd() / path if str(path).startswith("~") else path


def _is_fifo(path: Path) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def _try_folder(folder: Path, prefix: str) -> None:
    """Make a file in a folder and remove it; in the nearest one there is, if it is not there."""
    while not folder.exists() and folder != folder.parent:
        folder, prefix = folder.parent, "."
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=prefix)
    os.close(descriptor)
    os.unlink(name)


def _cause(error: Exception) -> str:
    if isinstance(error, NotADirectoryError | FileExistsError):
        return "a file stands where a folder should"
    return getattr(error, "strerror", None) or str(error)
