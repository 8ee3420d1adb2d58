"""Counts of what a `ZTokenIndex` holds."""

from __future__ import annotations

from dataclasses import dataclass

from ztok_rag.codec.allocation import count_z_tokens
from ztok_rag.index.corpus import Corpus


@dataclass(frozen=True)
class IndexStats:
    """What a `ZTokenIndex` holds.

    Attributes:
        documents: number of documents.
        chunks: number of their chunks, pending ones included.
        pending: number of chunks without Z-tokens of the checkpoint in use. They are compressed
            when first retrieved, and are not part of the token counts below.
        source_tokens: tokens of the base LLM in the chunks.
        z_tokens: Z-tokens of the chunks at the rate of the index.
        rate: actual rate, `source_tokens / z_tokens`.
        stored_bytes: bytes in the store: Z-tokens of each distinct chunk at all rates, and
            embeddings of its sentences.
        bytes_per_token: `stored_bytes / source_tokens`.
        text_bytes: UTF-8 bytes of the chunks' text.
    """

    documents: int
    chunks: int
    pending: int
    source_tokens: int
    z_tokens: int
    rate: float
    stored_bytes: int
    bytes_per_token: float
    text_bytes: int


def count(contents: Corpus, fingerprint: str | None = None) -> IndexStats:
    """Count what an index holds; no model is loaded.

    Args:
        contents: the contents of the index.
        fingerprint: fingerprint of the checkpoint in use; `None` is the one that compressed it.
    """
    rate = contents.manifest.rate
    fingerprint = fingerprint or contents.manifest.fingerprint
    chunks = pending = source_tokens = z_tokens = text_bytes = 0
    for text in contents.texts():
        chunks += 1
        text_bytes += len(text.encode("utf-8", "surrogatepass"))
        length = contents.store.length(fingerprint, text)
        if length is None:
            pending += 1
            continue
        source_tokens += length
        z_tokens += count_z_tokens(length, rate, contents.manifest.slots)
    stored_bytes = contents.store.size_bytes
    return IndexStats(
        documents=contents.document_count,
        chunks=chunks,
        pending=pending,
        source_tokens=source_tokens,
        z_tokens=z_tokens,
        rate=source_tokens / max(1, z_tokens),
        stored_bytes=stored_bytes,
        bytes_per_token=stored_bytes / max(1, source_tokens),
        text_bytes=text_bytes,
    )
