"""From documents to chunks with embeddings, whose Z-tokens are in the store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llama_index.core import Document
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.indices.utils import embed_nodes
from llama_index.core.schema import BaseNode

from ztok_rag.index.chunks import chunk_text, compress_texts, split_documents
from ztok_rag.index.distributed import RayEngine
from ztok_rag.index.folder import Manifest
from ztok_rag.selection.query_aware import QueryAwareSelector
from ztok_rag.storage.store import ZStore

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor


@dataclass(frozen=True)
class Ingestion:
    """What documents become chunks by.

    Attributes:
        manifest: settings of the index.
        compressor: makes Z-tokens.
        embed_model: makes vectors.
        store: gets the Z-tokens.
        engine: compresses and embeds on Ray; `None` does so in this process.
        show_progress: whether to show progress bars.
    """

    manifest: Manifest
    compressor: ZCompressor
    embed_model: BaseEmbedding
    store: ZStore
    engine: RayEngine | None
    show_progress: bool

    def chunks(self, documents: Sequence[Document], segments: Path) -> list[BaseNode]:
        """The chunks of documents, with embeddings, after their Z-tokens were put in the store.

        Args:
            documents: any number, with words.
            segments: folder of what Ray's workers make.
        """
        nodes = split_documents(
            documents,
            self.compressor.tokenizer,
            chunk_size=self.manifest.chunk_size,
            chunk_overlap=self.manifest.chunk_overlap,
        )
        if self.engine is not None and nodes:
            self.engine.prepare(
                nodes,
                self.compressor,
                self.embed_model,
                self.store,
                segments,
                show_progress=self.show_progress,
            )
        # Whatever is missing even so is made here.
        distinct = dict.fromkeys(map(chunk_text, nodes))
        self.compress(distinct, len(distinct))
        vectors = embed_nodes(nodes, self.embed_model, show_progress=self.show_progress)
        for node in nodes:
            node.embedding = vectors[node.node_id]
        return nodes

    def compress(self, texts: Iterable[str], total: int) -> int:
        """Put the Z-tokens of `total` texts into the store; how many had to be compressed."""
        selector = QueryAwareSelector.over(self.compressor, self.store, self.embed_model)
        return compress_texts(selector, texts, total=total, show_progress=self.show_progress)
