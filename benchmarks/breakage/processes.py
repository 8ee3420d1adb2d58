"""Processes that are forked off, killed, and asked how they ended."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ztok_rag.errors import ZtokError

DONE, REFUSED, FAILED = 0, 2, 3
"""Exit statuses: the action came to its end, raised a `ZtokError`, or raised anything else."""


def forked(action: Callable[[], object], log: Path) -> int:
    """Start an action in a forked process, and return the process's id.

    Args:
        action: what it does.
        log: file that gets what went wrong.
    """
    pid = os.fork()
    if pid:
        return pid
    status = FAILED
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        action()
        status = DONE
    except ZtokError as error:
        status = REFUSED
        _note(log, f"{error}\n")
    except BaseException:
        _note(log, traceback.format_exc())
    finally:
        os._exit(status)


def _note(log: Path, text: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    with log.open("a", encoding="utf-8") as file:
        file.write(text)


def ended(pid: int) -> int:
    """Wait for a process: its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed(action: Callable[[], object], delay: float, log: Path) -> int:
    """Run an action in a forked process and kill it after `delay` seconds, as `ended`."""
    pid = forked(action, log)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    return ended(pid)


def seconds_of(action: Callable[[], object], log: Path) -> float:
    """How long an action takes in a forked process that nobody kills."""
    started = time.perf_counter()
    ended(forked(action, log))
    return time.perf_counter() - started


class Beside:
    """A process that does something again and again, until it is told to stop."""

    def __init__(self, step: Callable[[], dict[str, Any]], log: Path) -> None:
        """Begin.

        Args:
            step: done again and again; its numbers are added up, its lists joined.
            log: file that gets what went wrong.
        """
        self._read, write = os.pipe()
        stop, self._stop = os.pipe()
        self._log = log

        def loop() -> None:
            os.close(self._read)
            os.close(self._stop)
            os.set_blocking(stop, False)
            total: dict[str, Any] = {}
            while not _is_told(stop):
                for name, value in step().items():
                    total[name] = total[name] + value if name in total else value
            os.write(write, json.dumps(total).encode()[:60_000])

        self._pid = forked(loop, log)
        os.close(write)
        os.close(stop)

    def stop(self) -> dict[str, Any]:
        """What the steps have added up to.

        Raises:
            RuntimeError: the process ended by itself.
        """
        os.close(self._stop)
        with os.fdopen(self._read, "rb") as file:
            data = file.read()
        if ended(self._pid) != DONE or not data:
            raise RuntimeError(f"a process beside failed: {self._log.read_text()[-2000:]}")
        found: dict[str, Any] = json.loads(data)
        return found


def _is_told(stop: int) -> bool:
    try:
        return os.read(stop, 1) == b""
    except BlockingIOError:
        return False
