"""The tokens by which askers show that they may ask, and where a server may listen without one."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path

from ztok_rag.errors import ZtokError
from ztok_rag.files import read_text, show
from ztok_rag.llamaindex.remote import API_KEY_VARIABLE

_SHORTEST = 16
_LOCAL_NAMES = ("localhost",)


class Tokens:
    """The tokens that a server accepts. Only their digests are kept."""

    def __init__(self, tokens: Iterable[str]) -> None:
        """Take the tokens.

        Raises:
            ZtokError: there is none, or one is shorter than 16 characters or holds white space
                or what is not ASCII.
        """
        given = list(tokens)
        for token in given:
            if len(token) < _SHORTEST or not token.isascii() or not token.isprintable():
                raise ZtokError(
                    f"a token has at least {_SHORTEST} printable ASCII characters; make one, as "
                    "with `openssl rand -hex 32`."
                )
            if any(map(str.isspace, token)):
                raise ZtokError("a token holds no white space; give one a line.")
        if not given:
            raise ZtokError("there is no token; give at least one.")
        self._digests = [_digest(token.encode()) for token in given]

    def accepts(self, authorization: bytes) -> bool:
        """Whether a header `Authorization` bears one of the tokens.

        The time this takes does not tell how much of a token was right.
        """
        scheme, _, token = authorization.partition(b" ")
        given = _digest(token.strip())
        same = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == b"bearer" and any(same)


def load_tokens(file: Path | None) -> Tokens | None:
    """The tokens in a file, one a line, else that in the environment's `ZTOK_API_KEY`.

    Empty lines, and those that begin with `#`, do not count.

    Returns:
        `None` where neither is given.

    Raises:
        ZtokError: the file cannot be read or holds no token, or one is not fit.
    """
    if file is not None:
        lines = [line.strip() for line in read_text(file).splitlines()]
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise ZtokError(f"{show(file)} holds no token; write one into it, on a line.")
        return Tokens(found)
    token = os.environ.get(API_KEY_VARIABLE)
    return Tokens([token]) if token else None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens at an address."""
    if host in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_reachable(host: str, tokens: Tokens | None) -> None:
    """Make sure that whoever reaches a server without a token is on its machine.

    Raises:
        ZtokError: other machines may reach it, and it has no token.
    """
    if tokens is None and not is_loopback(host):
        raise ZtokError(
            f"{show(host)} can be reached from other machines, and there is no token; give "
            f"--token-file, set {API_KEY_VARIABLE}, or listen on 127.0.0.1."
        )


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
