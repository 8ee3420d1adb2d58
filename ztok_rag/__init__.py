"""Z-token compression of retrieved context for long-context RAG.

The names below load what they need on first use, so `import ztok_rag` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ztok_rag.compressor import ZCompressor
    from ztok_rag.errors import (
        CheckpointError,
        DataError,
        HandleError,
        SequenceError,
        ZtokError,
    )
    from ztok_rag.index import ZTokenIndex
    from ztok_rag.llm import ZTokenLLM
    from ztok_rag.postprocessor import ZTokenPostprocessor
    from ztok_rag.reader import ZReader
    from ztok_rag.sequence import ZSequence
    from ztok_rag.store import ZStore
    from ztok_rag.transform import ZTokenTransform

__version__ = "0.1.0"

_HOMES = {
    "CheckpointError": "errors",
    "DataError": "errors",
    "HandleError": "errors",
    "SequenceError": "errors",
    "ZCompressor": "compressor",
    "ZReader": "reader",
    "ZSequence": "sequence",
    "ZStore": "store",
    "ZTokenIndex": "index",
    "ZTokenLLM": "llm",
    "ZTokenPostprocessor": "postprocessor",
    "ZTokenTransform": "transform",
    "ZtokError": "errors",
}

__all__ = [
    "CheckpointError",
    "DataError",
    "HandleError",
    "SequenceError",
    "ZCompressor",
    "ZReader",
    "ZSequence",
    "ZStore",
    "ZTokenIndex",
    "ZTokenLLM",
    "ZTokenPostprocessor",
    "ZTokenTransform",
    "ZtokError",
]


if not TYPE_CHECKING:  # a type checker would take every name for one of this package's

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
