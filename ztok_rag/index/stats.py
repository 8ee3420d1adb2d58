"""How much a `ZTokenIndex` holds, and how small it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ztok_rag.index.contents import Contents

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class IndexStats:
    """What a `ZTokenIndex` holds.

    Attributes:
        documents: documents.
        chunks: chunks of them, those that wait for compression included.
        pending: chunks without Z-tokens of the checkpoint in use; they are compressed when first
            retrieved, and left out of the token and byte counts below.
        source_tokens: tokens of the base LLM in the chunks.
        z_tokens: Z-tokens of the chunks.
        rate: source tokens per Z-token, as it came out.
        stored_bytes: bytes in the store: Z-tokens of each distinct chunk, for all rates at once,
            and what finds the sentences that a question is about.
        bytes_per_token: of these bytes, per source token.
        text_bytes: bytes of the chunks' text in UTF-8.
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


def count(contents: Contents, fingerprint: str | None = None) -> IndexStats:
    """What an index holds, read from its store.

    Args:
        contents: of the index.
        fingerprint: of the checkpoint in use; `None` is the one that the index was made with.
    """
    rate = contents.manifest.rate
    fingerprint = fingerprint or contents.manifest.fingerprint
    texts = contents.texts()
    sequences = {text: contents.store.get(fingerprint, text) for text in dict.fromkeys(texts)}
    chunks = [z for text in texts if (z := sequences[text]) is not None]
    source_tokens = sum(z.finest.source_tokens for z in chunks)
    z_tokens = sum(len(z.at(rate)) for z in chunks)
    stored_bytes = contents.store.size_bytes
    return IndexStats(
        documents=len(contents.document_ids),
        chunks=len(texts),
        pending=len(texts) - len(chunks),
        source_tokens=source_tokens,
        z_tokens=z_tokens,
        rate=source_tokens / max(1, z_tokens),
        stored_bytes=stored_bytes,
        bytes_per_token=stored_bytes / max(1, source_tokens),
        text_bytes=sum(len(text.encode("utf-8", "surrogatepass")) for text in texts),
    )
