"""A real redis-server on loopback, for the tests that need one."""

from __future__ import annotations

import shutil

import pytest

from breakage.redis_server import Server, running

pytest.importorskip("redis", reason="the package redis is not installed")

needs_redis = pytest.mark.skipif(
    shutil.which("redis-server") is None, reason="redis-server is not installed"
)

__all__ = ["Server", "needs_redis", "running"]
