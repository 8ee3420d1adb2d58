"""What a user has set in LlamaIndex's `Settings`, and whether an LLM reads Z-tokens.

This module alone reads private attributes of LlamaIndex. `Settings.llm` and `Settings.embed_model`
make a default of their own (OpenAI's) where the user has set none, so they do not tell whether one
was set. A response synthesizer does not tell by a public name which LLM it asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llama_index.core import Settings

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.llms import LLM
    from llama_index.core.response_synthesizers import BaseSynthesizer


def user_llm() -> LLM | None:
    """`Settings.llm` where it was set."""
    return Settings._llm


def user_embedding() -> BaseEmbedding | None:
    """`Settings.embed_model` where it was set."""
    return Settings._embed_model


def llm_of(synthesizer: BaseSynthesizer) -> LLM | None:
    """The LLM that a response synthesizer asks, where it has one."""
    return getattr(synthesizer, "_llm", None)


def reads_z_tokens(llm: object) -> bool:
    """Whether an LLM reads handles as Z-tokens.

    It says so by a true attribute `reads_z_tokens`. A wrapper, such as the one that
    `LLM.as_structured_llm` makes, is asked for the LLM in its attribute `llm`.
    """
    if getattr(llm, "reads_z_tokens", False):
        return True
    inner = getattr(llm, "llm", None)
    return inner is not None and inner is not llm and reads_z_tokens(inner)
