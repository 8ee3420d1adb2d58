"""Counts of what a `ZTokenIndex` holds."""

from __future__ import annotations

from dataclasses import dataclass

from ztok_rag.codec.allocation import count_z_tokens
from ztok_rag.index.corpus import Corpus
from ztok_rag.storage.backends import in_parts

_AT_ONCE = 1000  # texts of one query


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
        stored_bytes: bytes of the index in its store: Z-tokens of each distinct chunk at all
            rates, and embeddings of its sentences.
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
    chunks = source_tokens = z_tokens = text_bytes = pending = 0
    for texts in in_parts(contents.texts(), _AT_ONCE):
        lengths = contents.store.lengths(fingerprint, texts)
        found = [lengths[text] for text in texts if text in lengths]
        chunks += len(texts)
        pending += len(texts) - len(found)
        source_tokens += sum(found)
        z_tokens += sum(count_z_tokens(n, rate, contents.manifest.slots) for n in found)
        text_bytes += sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    stored_bytes = contents.holding.stored_bytes(contents.texts)
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
