"""Z-token compression of retrieved context for long-context RAG.

The names below load what they need on first use, so `import ztok_rag` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor
    from ztok_rag.codec.duplicates import find_duplicates
    from ztok_rag.codec.reader import ZReader
    from ztok_rag.codec.sequence import ZSequence
    from ztok_rag.codec.writing import ZGenerator
    from ztok_rag.errors import (
        CheckpointError,
        DataError,
        HandleError,
        SequenceError,
        ZtokError,
    )
    from ztok_rag.index.distributed import RayEngine
    from ztok_rag.index.index import ZTokenIndex
    from ztok_rag.llamaindex.citations import find_citations
    from ztok_rag.llamaindex.embedding import default_embedding
    from ztok_rag.llamaindex.llm import ZTokenLLM
    from ztok_rag.llamaindex.postprocessor import ZTokenPostprocessor
    from ztok_rag.llamaindex.transform import ZTokenTransform
    from ztok_rag.storage.store import ZStore

__version__ = "0.1.0"

_HOMES = {
    "CheckpointError": "errors",
    "DataError": "errors",
    "HandleError": "errors",
    "RayEngine": "index.distributed",
    "SequenceError": "errors",
    "ZCompressor": "codec.compressor",
    "ZGenerator": "codec.writing",
    "ZReader": "codec.reader",
    "ZSequence": "codec.sequence",
    "ZStore": "storage.store",
    "ZTokenIndex": "index.index",
    "ZTokenLLM": "llamaindex.llm",
    "ZTokenPostprocessor": "llamaindex.postprocessor",
    "ZTokenTransform": "llamaindex.transform",
    "ZtokError": "errors",
    "default_embedding": "llamaindex.embedding",
    "find_citations": "llamaindex.citations",
    "find_duplicates": "codec.duplicates",
}

__all__ = [
    "CheckpointError",
    "DataError",
    "HandleError",
    "RayEngine",
    "SequenceError",
    "ZCompressor",
    "ZGenerator",
    "ZReader",
    "ZSequence",
    "ZStore",
    "ZTokenIndex",
    "ZTokenLLM",
    "ZTokenPostprocessor",
    "ZTokenTransform",
    "ZtokError",
    "default_embedding",
    "find_citations",
    "find_duplicates",
]


if not TYPE_CHECKING:  # a type checker would take every name for one of this package's

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
