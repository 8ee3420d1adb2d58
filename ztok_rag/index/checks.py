"""Checks of the settings and the embedding model of a `ZTokenIndex`."""

from __future__ import annotations

from pathlib import Path

from llama_index.core.embeddings import BaseEmbedding

from ztok_rag.errors import ZtokError, check_rate
from ztok_rag.index.folder import Manifest
from ztok_rag.llamaindex.embedding import embedding_dimension, embedding_name
from ztok_rag.selection.embedding import DEFAULT_EMBEDDING


def check_settings(rate: float, chunk_size: int, chunk_overlap: int) -> None:
    """Refuse settings of an index that are out of range."""
    from ztok_rag.codec.compressor import MAX_RATE

    check_rate(rate, MAX_RATE)
    if not 0 <= chunk_overlap < chunk_size:
        raise ZtokError(
            f"chunks of {chunk_size} tokens cannot share {chunk_overlap}; the overlap must be at "
            "least 0 and below the chunk size."
        )


def check_embedding(path: Path, manifest: Manifest, embed_model: BaseEmbedding | None) -> None:
    """Refuse an embedding model other than the one that embedded the index.

    Args:
        path: folder of the index.
        manifest: settings of the index.
        embed_model: the model; `None` is the default one.

    Raises:
        ZtokError: its name or its dimension differs.
    """
    name = DEFAULT_EMBEDDING if embed_model is None else embedding_name(embed_model)
    # The default model is not loaded for this: its name is enough.
    dimension = (
        manifest.embed_dimension if embed_model is None else embedding_dimension(embed_model)
    )
    if (name, dimension) == (manifest.embed_model, manifest.embed_dimension):
        return
    given = name if embed_model is None else f"{name} ({dimension} dimensions)"
    remedy = "pass that model"
    if manifest.embed_model == DEFAULT_EMBEDDING:
        remedy = "pass ztok_rag.default_embedding()"
    raise ZtokError(
        f"the index {path} was embedded by {manifest.embed_model} ({manifest.embed_dimension} "
        f"dimensions) and cannot be searched by {given}; {remedy} as embed_model, or build "
        "the index again with this one."
    )
