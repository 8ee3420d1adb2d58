"""URLs of stores, whose password is never shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from ztok_rag.errors import ZtokError

SCHEMES = ("redis", "rediss", "unix")
PREFIX = "ztok"
"""What the names of a Redis store's keys begin with, unless the URL says otherwise."""

_ANY_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_FORM = "redis://:PASSWORD@HOST:PORT/DB?prefix=NAME, rediss://… or unix:///PATH?db=DB"
_OPTIONS = {
    *("db", "prefix", "username", "password", "max_connections", "health_check_interval"),
    *("socket_timeout", "socket_connect_timeout"),
    *("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_keyfile_password"),
    *("ssl_cert_reqs", "ssl_check_hostname"),
}


@dataclass(frozen=True, repr=False)
class StoreUrl:
    """A URL of a Redis database.

    Attributes:
        text: the URL, with its password.
        name: the URL without user, password and options, which tells one store from another.
        prefix: what the names of the store's keys begin with.
    """

    text: str
    name: str
    prefix: str

    def __repr__(self) -> str:
        return f"StoreUrl({self.name!r})"

    @classmethod
    def parse(cls, text: str) -> StoreUrl:
        """Read a URL.

        Raises:
            ZtokError: it has another scheme, is malformed, or has an unknown option. The message
                does not hold what may be a part of the password.
        """
        # An unescaped sign in a password may end up in any part, so no part is shown, and the
        # parser's own error, which shows some, is not chained.
        malformed = ZtokError(
            f"the URL of the store cannot be read; write it as {_FORM}, with the signs :/?#@% of "
            "the password percent-encoded."
        )
        try:
            parts = urlsplit(text)
            port = parts.port or 6379
            options = dict(_options(text, strict_parsing=True))
        except ValueError:
            raise malformed from None
        if parts.scheme not in SCHEMES:
            raise ZtokError(
                f"a store is a folder or a URL such as {_FORM}; {parts.scheme}:// is none of them."
            )
        if unknown := sorted(options.keys() - _OPTIONS):
            raise ZtokError(
                f"the URL of the store has {len(unknown)} unknown option"
                f"{'s' * (len(unknown) > 1)}; there are {', '.join(sorted(_OPTIONS))}."
            )
        prefix = options.get("prefix", PREFIX)
        db = options.get("db", "0" if parts.scheme == "unix" else parts.path.strip("/") or "0")
        is_socket = parts.scheme == "unix"
        if parts.fragment or not db.isdecimal() or not prefix:
            raise malformed
        if is_socket != (not parts.hostname) or (is_socket and parts.path in ("", "/")):
            raise malformed
        if is_socket:
            place = f"unix://{parts.path}?db={db}"
        else:
            host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
            place = f"{parts.scheme}://{host}:{port}/{db}"
        if prefix != PREFIX:
            place += f"{'&' if is_socket else '?'}prefix={quote(prefix)}"
        return cls(text, place, prefix)

    @property
    def for_client(self) -> str:
        """The URL as the package redis takes it: without the prefix."""
        options = [(key, value) for key, value in _options(self.text) if key != "prefix"]
        return f"{self.text.partition('?')[0]}?{urlencode(options)}".rstrip("?")

    @property
    def options(self) -> frozenset[str]:
        """Names of the options that the URL states."""
        return frozenset(key for key, _ in _options(self.text))

    def hide(self, message: str) -> str:
        """A message without the password, should it be in it."""
        password = urlsplit(self.text).password or ""
        stated = {key: value for key, value in _options(self.text) if "password" in key}
        for secret in {password, unquote(password), *stated.values()} - {""}:
            message = message.replace(secret, "***")
        return message


def is_url(place: object) -> bool:
    """Whether a place of a store is written as a URL, of whatever scheme."""
    return isinstance(place, str) and _ANY_URL.match(place) is not None


def _options(url: str, *, strict_parsing: bool = False) -> list[tuple[str, str]]:
    query = urlsplit(url).query
    return parse_qsl(query, True, strict_parsing) if query else []
