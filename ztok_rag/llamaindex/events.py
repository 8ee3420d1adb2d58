"""LlamaIndex instrumentation events of compressing, looking up and reading Z-tokens."""

from __future__ import annotations

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events import BaseEvent

dispatcher = get_dispatcher("ztok_rag")


class ZTokenLookupEvent(BaseEvent):
    """Texts were looked up in a store, and what it had not was compressed.

    Attributes:
        hits: texts whose Z-tokens were there.
        misses: texts that were compressed.
        source_tokens: of all the texts.
        z_tokens: of all the texts.
        ms: wall-clock milliseconds, compression included.
    """

    hits: int
    misses: int
    source_tokens: int
    z_tokens: int
    ms: float

    @classmethod
    def class_name(cls) -> str:
        return "ZTokenLookupEvent"


class ZTokenSpliceEvent(BaseEvent):
    """Z-tokens took the place of the handles in a prompt.

    Attributes:
        handles: in the prompt.
        z_tokens: that they stand for.
        prompt_tokens: input positions of the whole prompt.
        ms: wall-clock milliseconds to check and decode the handles.
    """

    handles: int
    z_tokens: int
    prompt_tokens: int
    ms: float

    @classmethod
    def class_name(cls) -> str:
        return "ZTokenSpliceEvent"
