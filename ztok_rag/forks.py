"""What a process that was forked from a running one needs: web servers fork their workers so."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from weakref import WeakSet


class ForkSafeLock:
    """A reentrant lock that is free in a forked process, whoever held it in the one before.

    The thread that held it is not forked along, and would never release it.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self._lock.release()


_locks: WeakSet[ForkSafeLock] = WeakSet()


def in_forked_processes(action: Callable[[], object]) -> None:
    """Have each process that is forked from this one begin with `action`."""
    if hasattr(os, "register_at_fork"):  # there is no fork on Windows
        os.register_at_fork(after_in_child=action)


def _free_locks() -> None:
    for lock in list(_locks):
        lock._lock = threading.RLock()


def _own_bars() -> None:
    """Give progress bars a lock of this process.

    tqdm shares one with the processes that are forked: a process that is killed while it draws a
    bar keeps it, and all others wait for ever.
    """
    if bars := sys.modules.get("tqdm.auto"):
        bars.tqdm.set_lock(threading.RLock())


in_forked_processes(_free_locks)
in_forked_processes(_own_bars)
