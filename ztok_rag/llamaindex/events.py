"""LlamaIndex instrumentation events: Z-tokens were looked up, Z-tokens were read."""

from __future__ import annotations

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events import BaseEvent

dispatcher = get_dispatcher("ztok_rag")


class ZTokenLookupEvent(BaseEvent):
    """A `ZTokenPostprocessor` looked texts up in its store, and compressed the absent ones.

    Attributes:
        hits: number of texts that the store held.
        misses: number of texts that were compressed.
        source_tokens: source tokens of all texts.
        z_tokens: Z-tokens that are read of all texts.
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
    """A `ZTokenLLM` replaced the handles in a prompt by Z-tokens.

    Attributes:
        handles: number of handles in the prompt.
        z_tokens: number of Z-tokens that are read for them, of both looks where there are two.
        prompt_tokens: input positions of the whole prompt, likewise.
        ms: wall-clock milliseconds to check and decode the handles.
    """

    handles: int
    z_tokens: int
    prompt_tokens: int
    ms: float

    @classmethod
    def class_name(cls) -> str:
        return "ZTokenSpliceEvent"
