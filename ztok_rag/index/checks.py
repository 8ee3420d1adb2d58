"""What the settings and the embedding model of a `ZTokenIndex` must fulfil."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llama_index.core.embeddings import BaseEmbedding

from ztok_rag.errors import ZtokError
from ztok_rag.index.folder import Manifest
from ztok_rag.llamaindex.embedding import embedding_dimension, embedding_name
from ztok_rag.selection.embedding import DEFAULT_EMBEDDING

if TYPE_CHECKING:
    pass


def check_settings(rate: float, chunk_size: int, chunk_overlap: int) -> None:
    from ztok_rag.codec.compressor import MAX_RATE

    if not 1 <= rate <= MAX_RATE:
        raise ZtokError(f"the rate must be from 1 to {MAX_RATE:.0f}, not {rate}.")
    if not 0 <= chunk_overlap < chunk_size:
        raise ZtokError(
            f"chunks of {chunk_size} tokens cannot share {chunk_overlap}; the overlap must be at "
            "least 0 and below the chunk size."
        )


def check_embedding(path: Path, manifest: Manifest, embed_model: BaseEmbedding | None) -> None:
    """Refuse an embedding model whose vectors do not compare with those of the index."""
    name = DEFAULT_EMBEDDING if embed_model is None else embedding_name(embed_model)
    # The default model is known by its name and need not be loaded for this.
    dimension = (
        manifest.embed_dimension if embed_model is None else embedding_dimension(embed_model)
    )
    if (name, dimension) == (manifest.embed_model, manifest.embed_dimension):
        return
    given = name if embed_model is None else f"{name} ({dimension} dimensions)"
    raise ZtokError(
        f"the index {path} was embedded by {manifest.embed_model} ({manifest.embed_dimension} "
        f"dimensions) and cannot be searched by {given}; pass that model as embed_model, or build "
        "the index again with this one."
    )
