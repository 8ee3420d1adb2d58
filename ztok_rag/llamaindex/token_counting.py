"""Teaches LlamaIndex's token counting that a handle is as long as its Z-tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llama_index.core
from llama_index.core.utils import get_tokenizer, set_global_tokenizer

from ztok_rag.storage.handle import count_tokens


class HandleTokenizer:
    """A LlamaIndex tokenizer that counts each handle as its Z-tokens and all else as before.

    Only the length of what it returns has a meaning: the entries are not token ids.
    """

    def __init__(self, inner: Callable[[str], list[Any]]) -> None:
        self.inner = inner

    def __call__(self, text: str) -> list[int]:
        return [0] * count_tokens(text, self.inner)


def install_handle_tokenizer() -> bool:
    """Wrap LlamaIndex's global tokenizer in a `HandleTokenizer`, unless it is one already.

    The prompt helper of a response synthesizer counts and cuts prompts with the tokenizer that is
    global when the synthesizer is made. Without this, a handle would count as its hundreds of
    characters, and a prompt that fits would be cut inside a handle.

    Returns:
        Whether it had to be wrapped.
    """
    if isinstance(llama_index.core.global_tokenizer, HandleTokenizer):
        return False
    set_global_tokenizer(HandleTokenizer(get_tokenizer()))
    return True
