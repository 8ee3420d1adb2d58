"""A real redis-server on loopback, which is started, stopped and killed."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_START_SECONDS = 20


def is_installed() -> bool:
    """Whether there are a redis-server and the package redis."""
    return shutil.which("redis-server") is not None and bool(importlib.util.find_spec("redis"))


@dataclass
class Server:
    """A server with an append-only file that never evicts.

    Attributes:
        folder: where its files lie.
        options: further ones of its command line.
        port: on loopback.
    """

    folder: Path
    options: tuple[str, ...] = ()
    port: int = 0
    password: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        user = f":{self.password}@" if self.password else ""
        return f"redis://{user}127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        import redis

        if not self.port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        self.folder.mkdir(exist_ok=True)
        command = [
            *("redis-server", "--bind", "127.0.0.1", "--port", str(self.port)),
            *("--dir", str(self.folder), "--appendonly", "yes", "--appendfsync", "always"),
            *("--save", "", "--maxmemory-policy", "noeviction"),
        ]
        if self.password:
            command += ["--requirepass", self.password]
        self.process = subprocess.Popen([*command, *self.options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self.client().ping()
                return
            except redis.ConnectionError:  # BusyLoadingError is one
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def stop(self, *, kill: bool = False) -> None:
        """End it; `kill` gives it no time to write anything."""
        if self.process is not None:
            self.process.kill() if kill else self.process.terminate()
            self.process.wait(20)
            self.process = None

    def client(self) -> Any:
        """A new client, without time-outs."""
        import redis

        return redis.Redis(port=self.port, password=self.password or None)


@contextmanager
def running(folder: Path, *options: str, password: str = "") -> Iterator[Server]:
    """A server that is killed at the end."""
    server = Server(folder, options, password=password)
    try:
        server.start()
        yield server
    finally:
        server.stop(kill=True)
