"""Handles: the text form of a `ZSequence` that travels inside an ordinary prompt string.

A handle is `⟦ztok:N:DATA⟧`. `N` is the number of its Z-tokens in decimal, so that they can be
counted without decoding. `DATA` is the base64url of 4 bytes that identify the secret, a 16-byte
keyed hash, and `ZSequence.to_bytes()`. It has no white space and no sentence punctuation, so text
splitters do not cut it.

Without the store's secret, nobody can make a valid handle. A handle can be used more than once:
copied from one prompt into another, it is still valid. This reveals nothing new to whoever copies
it, because a handle contains its codes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Iterator

from ztok_rag.codec.sequence import ZSequence
from ztok_rag.codec.token_code import TokenCode
from ztok_rag.errors import HandleError, SequenceError

SECRET_BYTES = 32
LONGEST = 512
"""Most Z-tokens of a handle, unless told otherwise."""

_OPEN = "⟦ztok:"
_CLOSE = "⟧"
_ESCAPED_OPEN = "[ztok:"
_HANDLE = re.compile(f"{_OPEN}([1-9][0-9]{{0,8}}):([A-Za-z0-9_-]+){_CLOSE}")
_KEY_ID_BYTES = 4
_MAC_BYTES = 16
_RETRY = "retrieve the text again through ZTokenPostprocessor"


def encode_handle(z: ZSequence, secret: bytes) -> str:
    """The handle of `z`, signed with a store's secret of `SECRET_BYTES` bytes."""
    body = z.to_bytes()
    data = _base64(secret_id(secret) + _mac(len(z), body, secret) + body)
    return f"{_OPEN}{len(z)}:{data}{_CLOSE}"


def encode_handles(z: ZSequence, secret: bytes, *, longest: int = LONGEST) -> str:
    """Handles of parts of `z`, of `longest` Z-tokens at most, with spaces between them.

    A text splitter then cuts at a space, and not inside a handle that is longer than a prompt.
    """
    return " ".join(encode_handle(part, secret) for part in z.parts(longest))


def decode_handle(handle: str, secret: bytes, code: TokenCode) -> ZSequence:
    """Inverse of `encode_handle`.

    Args:
        handle: the handle.
        secret: of the store that signed it.
        code: the entropy code of the checkpoint that made it.

    Raises:
        HandleError: the handle is malformed or edited, another secret signed it, or another
            version made it.
    """
    match = _HANDLE.fullmatch(handle)
    if match is None:
        raise HandleError(
            f"the prompt holds an incomplete or altered handle ({_excerpt(handle)}); {_RETRY}, in "
            "smaller chunks or at a higher rate if a text splitter cut it; pass text that only "
            "looks like a handle through escape_handles()."
        )
    count, data = match.groups()
    try:
        signed = base64.urlsafe_b64decode(data + "=" * (-len(data) % 4))
    except binascii.Error as error:
        raise _edited(handle) from error
    if _base64(signed) != data:  # bits that decoding ignores were changed
        raise _edited(handle)
    key_id, mac, body = (
        signed[:_KEY_ID_BYTES],
        signed[_KEY_ID_BYTES : _KEY_ID_BYTES + _MAC_BYTES],
        signed[_KEY_ID_BYTES + _MAC_BYTES :],
    )
    if key_id != secret_id(secret):
        raise HandleError(
            f"the handle {_excerpt(handle)} was not made with this store's secret; give "
            f"ZTokenPostprocessor and ZTokenLLM the same store, or {_RETRY}."
        )
    if not hmac.compare_digest(mac, _mac(int(count), body, secret)):
        raise _edited(handle)
    try:
        return ZSequence.from_bytes(body, code)
    except SequenceError as error:
        raise HandleError(
            f"the handle {_excerpt(handle)} cannot be read ({error}); {_RETRY}."
        ) from error


def split_prompt(
    prompt: str, secret: bytes, fingerprint: str, code: TokenCode
) -> list[str | ZSequence]:
    """Cut a prompt at its handles.

    Args:
        prompt: text with any number of handles.
        secret: of the store whose handles are accepted.
        fingerprint: of the checkpoint that will read the Z-tokens.
        code: the entropy code of that checkpoint.

    Returns:
        The non-empty pieces of text and the sequences, in order.

    Raises:
        HandleError: the prompt holds the beginning of a handle that this secret did not sign, or
            a handle that another checkpoint made.
    """
    segments: list[str | ZSequence] = []
    for piece, is_handle in _pieces(prompt):
        if not is_handle:
            segments.append(piece)
            continue
        z = decode_handle(piece, secret, code)
        if z.fingerprint != fingerprint:
            raise HandleError(
                f"the handle {_excerpt(piece)} was made by checkpoint {z.fingerprint} but the "
                f"reader is checkpoint {fingerprint}; use one checkpoint for both, or {_RETRY}."
            )
        segments.append(z)
    return segments


def has_handles(text: str) -> bool:
    """Whether `text` holds the beginning of a handle, valid or not."""
    return _OPEN in text


def escape_handles(text: str) -> str:
    """`text` with the beginning of each handle changed, so that none is read as a handle."""
    return text.replace(_OPEN, _ESCAPED_OPEN)


class HandleEscaper:
    """`escape_handles` for a text in pieces; a handle may begin in one and go on in the next."""

    def __init__(self) -> None:
        self._held = ""

    def take(self, piece: str) -> str:
        """What can be passed on once a piece has come."""
        text = escape_handles(self._held + piece)
        keep = next((n for n in range(len(_OPEN) - 1, 0, -1) if text.endswith(_OPEN[:n])), 0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def rest(self) -> str:
        """What was held back; no piece follows."""
        held, self._held = self._held, ""
        return held


def count_tokens(text: str, tokenize: Callable[[str], list[int]]) -> int:
    """Input positions of `text`, where a handle counts as its Z-tokens.

    A handle is not decoded: its number of Z-tokens is the one that it states.
    """
    return sum(
        _stated_count(piece) if is_handle and _HANDLE.fullmatch(piece) else len(tokenize(piece))
        for piece, is_handle in _pieces(text)
    )


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """Cut `text` into pieces, each with whether it begins like a handle.

    An incomplete handle reaches to the beginning of the next one, or to the end.
    """
    position = 0
    while (start := text.find(_OPEN, position)) >= 0:
        if start > position:
            yield text[position:start], False
        match = _HANDLE.match(text, start)
        following = text.find(_OPEN, start + 1)
        position = match.end() if match else following if following > 0 else len(text)
        yield text[start:position], True
    if position < len(text):
        yield text[position:], False


def _stated_count(handle: str) -> int:
    return int(handle[len(_OPEN) : handle.index(":", len(_OPEN))])


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def secret_id(secret: bytes) -> bytes:
    """An id of the secret that does not reveal it, to tell a foreign handle from an edited one."""
    return hashlib.blake2b(key=secret, digest_size=_KEY_ID_BYTES, person=b"ztok-key-id").digest()


def _mac(count: int, body: bytes, secret: bytes) -> bytes:
    mac = hashlib.blake2b(key=secret, digest_size=_MAC_BYTES, person=b"ztok-handle-1")
    mac.update(b"%d:" % count)
    mac.update(body)
    return mac.digest()


def _excerpt(handle: str) -> str:
    return handle if len(handle) <= 24 else f"{handle[:20]}…"


def _edited(handle: str) -> HandleError:
    return HandleError(f"the handle {_excerpt(handle)} was edited after it was made; {_RETRY}.")
