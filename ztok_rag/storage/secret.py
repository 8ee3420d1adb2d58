"""The secret that signs the handles of a store, in a file of its own."""

from __future__ import annotations

import os
import secrets
import warnings
from contextlib import suppress
from pathlib import Path

from ztok_rag.errors import ZtokError
from ztok_rag.storage.handle import SECRET_BYTES


def given_secret(secret: bytes | None) -> bytes | None:
    """A secret that is given, or is in the file that `ZTOK_SECRET_FILE` names; `None` without.

    Raises:
        ZtokError: it has another length than `SECRET_BYTES`, or the file cannot be read.
    """
    file = os.environ.get("ZTOK_SECRET_FILE")
    if secret is None and file:
        try:
            secret = Path(file).read_bytes()
        except (OSError, ValueError) as error:
            raise ZtokError(
                f"the secret in ZTOK_SECRET_FILE={file} cannot be read ({error}); name a file that "
                "can be read, or unset it."
            ) from error
    if secret is not None and len(secret) != SECRET_BYTES:
        raise ZtokError(
            f"a store's secret is {SECRET_BYTES} bytes, and {len(secret)} were given; make one, as "
            f"with `head -c {SECRET_BYTES} /dev/urandom`."
        )
    return secret


def load_secret(path: Path, *, is_read_only: bool = False) -> bytes:
    """The secret in `path`, which is made at first use.

    Where several processes make one at once, all of them get the same one.

    Args:
        path: the file.
        is_read_only: write nothing; a secret that is not there is this process's own.
    """
    if path.exists():
        secret = path.read_bytes()
        if len(secret) == SECRET_BYTES:
            if path.stat().st_mode & 0o077 and not is_read_only:
                with suppress(OSError):  # another user's, or on a file system without modes
                    path.chmod(0o600)
            return secret
    if is_read_only:
        return secrets.token_bytes(SECRET_BYTES)
    if path.exists():
        warnings.warn(
            f"the secret {path} is damaged and is replaced; handles made with it are refused.",
            stacklevel=4,
        )
        path.unlink(missing_ok=True)
    temporary = path.with_name(f".secret.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
        try:
            with suppress(FileExistsError):
                os.link(temporary, path)
        except OSError:  # a file system without hard links
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path.read_bytes()
