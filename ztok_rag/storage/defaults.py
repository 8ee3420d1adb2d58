"""The compressor and the store of objects made without arguments, one each per process."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from ztok_rag.forks import ForkSafeLock
from ztok_rag.storage.store import ZStore

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor

# lru_cache alone may load twice when two threads call at once.
_lock = ForkSafeLock()


def default_compressor() -> ZCompressor:
    """The shipped checkpoint on the default base LLM, loaded at the first call."""
    with _lock:
        return _compressor()


@lru_cache(maxsize=1)
def default_fingerprint() -> str:
    """Fingerprint of the shipped checkpoint; no model is loaded."""
    from ztok_rag.codec.config import ZConfig
    from ztok_rag.codec.model import DEFAULT_CHECKPOINT, codes_fingerprint, read_token_code

    return codes_fingerprint(ZConfig.load(DEFAULT_CHECKPOINT), read_token_code(DEFAULT_CHECKPOINT))


def default_store() -> ZStore:
    """The store in the package's cache folder, opened at the first call."""
    with _lock:
        return _store()


@lru_cache(maxsize=1)
def _compressor() -> ZCompressor:
    from ztok_rag.codec.compressor import ZCompressor

    return ZCompressor.from_pretrained()


@lru_cache(maxsize=1)
def _store() -> ZStore:
    return ZStore()
