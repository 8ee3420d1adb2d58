"""The server's process: its socket, and its end."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from ztok_rag.errors import ZtokError
from ztok_rag.serving.limits import Limits


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: name or address of this machine.
        port: 0 is any that is free.

    Raises:
        ZtokError: the port is taken, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, kind, protocol)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
        except OSError:
            opened.close()
            raise
    except (OSError, OverflowError) as error:
        raise ZtokError(
            f"cannot listen on {host}, port {port} ({error}); name an address of this machine, "
            "and a port that is free."
        ) from error
    opened.set_inheritable(True)
    return opened


def serve(
    app: FastAPI,
    opened: socket.socket,
    limits: Limits,
    *,
    certificate: Path | None = None,
    key: Path | None = None,
    started: Callable[[uvicorn.Server], object] | None = None,
) -> None:
    """Serve until the process is told to end; requests under way are finished first.

    Args:
        app: as `create_app` makes it.
        opened: as `listen` makes it.
        limits: of the time that requests have to end.
        certificate: file of the TLS certificate, in PEM; `None` serves without TLS.
        key: file of its key.
        started: is given the server, which a true `should_exit` ends.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=limits.shutdown_seconds,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    server = uvicorn.Server(config)
    if started is not None:
        started(server)
    server.run(sockets=[opened])
