"""A Ray cluster of this machine's own, which nobody else can reach."""

from __future__ import annotations

import importlib
import importlib.util
import ipaddress
import logging
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ztok_rag.errors import ZtokError

# Read when Ray is imported, or when it starts. Its own servers then listen on 127.0.0.1 alone,
# ask for the token, and report nothing; workers inherit what the driver has.
_SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the name aside, it binds to loopback on Linux, too
    "RAY_USAGE_STATS_ENABLED": "0",
}
_LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"


@contextmanager
def ray_cluster(address: str | None = None, cores: int | None = None) -> Iterator[Any]:
    """Ray, connected to a cluster while the body runs.

    A cluster that the caller has connected to, or that `address` or `RAY_ADDRESS` names, is used
    as it is. Else one is started, with a token of its own, on the loopback interface, without a
    dashboard and without usage statistics, and stopped afterwards.

    Args:
        address: of a running cluster.
        cores: CPU cores of the one that is started; `None` is all.

    Raises:
        ZtokError: Ray is not installed, cannot be started, or would listen to other machines.
    """
    if importlib.util.find_spec("ray") is None:
        raise ZtokError("ingestion on Ray needs the package ray; run `pip install ztok-rag[ray]`.")
    if "ray" in sys.modules and importlib.import_module("ray").is_initialized():
        yield importlib.import_module("ray")
        return
    address = address or os.environ.get("RAY_ADDRESS")
    own = {} if address else {**_SETTINGS, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    if own and _LOG_LEVEL not in os.environ:
        own[_LOG_LEVEL] = "fatal"  # else the driver's console gets what is for Ray's developers
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        ray = importlib.import_module("ray")
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if not address:
            options |= {"address": "local", "include_dashboard": False, "num_cpus": cores}
        try:
            ray.init(**{"address": address, **options})
        except Exception as error:  # Ray's errors have no common base
            raise ZtokError(
                f"Ray cannot be started ({error}); start or connect it with ray.init() before."
            ) from error
        try:
            if not address:
                _check_loopback(ray)
            yield ray
        finally:
            ray.shutdown()
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _check_loopback(ray: Any) -> None:
    place = ray.util.get_node_ip_address()
    if not ipaddress.ip_address(place).is_loopback:
        raise ZtokError(
            f"Ray was imported before, and would listen to other machines on {place}; import ray "
            "later, or connect to a cluster of yours by ray.init() before."
        )
