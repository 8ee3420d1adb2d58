"""What every command and script needs around it: streams, signals, errors and exit statuses."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from ztok_rag.errors import ZtokError
from ztok_rag.files import show

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 and the number of the signal, as shells have it."""

NO_READER = 141
"""Exit status where nobody reads the output any more, as after `| head`."""

_REMEDIES = {
    errno.ENOSPC: "make room on the disk, or write elsewhere",
    errno.EDQUOT: "make room on the disk, or write elsewhere",
    errno.EACCES: "change its permissions, or name another",
    errno.EPERM: "change its permissions, or name another",
    errno.EROFS: "write elsewhere",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "name a folder",
}


def run_program(main: Callable[[], object], name: str) -> NoReturn:
    """Run a program to its end.

    Errors of ours and of the operating system are one line on stderr and exit status 1. Ctrl-C is
    one line and status 130. Where nobody reads the output any more, the program ends in silence.

    Args:
        main: the program.
        name: begins its messages.
    """
    prepare_streams()
    _end_by_exception(name)
    status = 1
    try:
        main()
        status = 0
    except ZtokError as error:
        say(str(error), name)
    except BrokenPipeError:
        status = NO_READER
    except OSError as error:
        say(describe(error), name)
    except KeyboardInterrupt:
        say("stopped.", name)
        status = INTERRUPTED
    finally:
        _settle_streams()
    raise SystemExit(status)


def prepare_streams() -> None:
    """Let stdout and stderr replace what they cannot show, and take nothing where they are closed.

    A stream is `None` in a program without a console, and where the shell has closed it.
    """
    for stream in ("stdout", "stderr"):
        held = getattr(sys, stream)
        if held is None or getattr(held, "closed", False):
            # Left open to the end: the file that is opened next must not get its number.
            setattr(sys, stream, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(held, "reconfigure"):
            held.reconfigure(errors="replace")


def say(message: str, name: str = "ztok") -> None:
    """Write one line to stderr, whatever the message holds."""
    with suppress(OSError, ValueError):
        print(f"{name}: {show(message)}", file=sys.stderr, flush=True)


def describe(error: OSError) -> str:
    """An error of the operating system in one line, with a remedy where there is one."""
    subject = f"{show(os.fsdecode(error.filename))}: " if _is_name(error.filename) else ""
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{subject}{error.strerror or error}{f'; {remedy}' if remedy else ''}."


def shows_bars() -> bool:
    """Whether stderr is a terminal that can draw a progress bar."""
    isatty = getattr(sys.stderr, "isatty", None)
    return bool(isatty and isatty()) and os.environ.get("TERM") != "dumb"


@contextmanager
def resumable(name: str = "ztok") -> Iterator[None]:
    """End the program after Ctrl-C in the body, with a line that says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here.", name)
        raise SystemExit(INTERRUPTED) from None


def _is_name(value: Any) -> bool:
    return isinstance(value, str | bytes | os.PathLike)


def _end_by_exception(name: str) -> None:
    """Let Ctrl-C and a request to end unwind the stack, so that temporary files are removed.

    A signal that is ignored, as under `nohup`, stays ignored.
    """

    def end(number: int, frame: FrameType | None) -> NoReturn:
        is_interrupt = number == signal.SIGINT
        if _is_importing(frame):  # PyTorch aborts with a dump if an exception comes then
            if is_interrupt:
                say("stopped.", name)
            os._exit(128 + number)
        raise KeyboardInterrupt if is_interrupt else SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        return
    for signal_name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, signal_name, None)
        usual = (signal.SIG_DFL, signal.default_int_handler)
        if number is not None and signal.getsignal(number) in usual:
            signal.signal(number, end)


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported where the program is."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _settle_streams() -> None:
    """Write out what stdout and stderr still hold.

    What cannot be written is dropped: Python would try again at its end, and complain.
    """
    for stream in filter(None, (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
