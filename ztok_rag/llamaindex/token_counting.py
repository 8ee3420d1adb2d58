"""Teaches LlamaIndex's token counting that a handle is as long as its Z-tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import llama_index.core
from llama_index.core.utils import get_tokenizer, set_global_tokenizer

from ztok_rag.storage.handle import count_tokens

_installed = threading.Event()


class HandleTokenizer:
    """A LlamaIndex tokenizer that counts each handle as its Z-tokens and all else as before.

    What it returns is good for its length only: the entries are not token ids.
    """

    def __init__(self, inner: Callable[[str], list[Any]]) -> None:
        self.inner = inner

    def __call__(self, text: str) -> list[int]:
        return [0] * count_tokens(text, self.inner)


def handles_are_counted() -> bool:
    """Whether `install_handle_tokenizer` was ever called, as by every `ZTokenLLM` that is made."""
    return _installed.is_set()


def install_handle_tokenizer() -> None:
    """Wrap LlamaIndex's global tokenizer in a `HandleTokenizer`, unless it is one already.

    The prompt helper of every response synthesizer counts and cuts with the global tokenizer.
    Without this a handle would count as its hundreds of characters, and a prompt that fits would
    be cut inside one.
    """
    _installed.set()
    if not isinstance(llama_index.core.global_tokenizer, HandleTokenizer):
        set_global_tokenizer(HandleTokenizer(get_tokenizer()))
