"""The encodings that LlamaIndex ships, for tiktoken."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def tiktoken_files() -> Iterator[None]:
    """Let tiktoken read the encodings that LlamaIndex ships, so that it does not download them."""
    import llama_index.core

    if "TIKTOKEN_CACHE_DIR" in os.environ:
        yield
        return
    folder = Path(str(llama_index.core.__file__)).parent / "_static" / "tiktoken_cache"
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["TIKTOKEN_CACHE_DIR"]
