"""`ZTokenPostprocessor`: replaces retrieved text by Z-tokens on its way into the prompt."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    MetadataMode,
    Node,
    NodeWithScore,
    QueryBundle,
    TextNode,
)

from ztok_rag.defaults import default_compressor, default_store
from ztok_rag.handle import encode_handle, escape_handles, has_handles
from ztok_rag.node import ZTokenNode
from ztok_rag.store import ZStore

if TYPE_CHECKING:
    from ztok_rag.compressor import ZCompressor


@dataclass(frozen=True)
class PostprocessorStats:
    """What a `ZTokenPostprocessor` has done since it was made.

    Attributes:
        nodes: nodes replaced by Z-tokens.
        compressed: texts that had to be compressed for that.
        hits: nodes whose Z-tokens were there already.
        ms: wall-clock milliseconds spent, loading of the model excluded.
    """

    nodes: int = 0
    compressed: int = 0
    hits: int = 0
    ms: float = 0.0


class ZTokenPostprocessor(BaseNodePostprocessor):
    """Shows the LLM each retrieved text as Z-tokens; for use with `ZTokenLLM`.

    Texts already in the store are not compressed again. Ids, scores, metadata and source text of
    the nodes stay available on a response's `source_nodes`. Put it after every postprocessor that
    reads or edits text.

    Nodes without text, and image, audio and video nodes, stay as they are. Text they show
    the LLM that would be taken for a handle is escaped.
    """

    rate: float = Field(default=4.0, ge=1.0, description="Source tokens per Z-token.")

    _compressor: ZCompressor | None = PrivateAttr(default=None)
    _store: ZStore | None = PrivateAttr(default=None)
    _stats: PostprocessorStats = PrivateAttr(default_factory=PostprocessorStats)
    _stats_lock: Any = PrivateAttr(default_factory=threading.Lock)

    def __init__(
        self,
        *,
        rate: float = 4.0,
        compressor: ZCompressor | None = None,
        store: ZStore | None = None,
        **kwargs: Any,
    ) -> None:
        """Set up; nothing is loaded before the first nodes come.

        Args:
            rate: source tokens per Z-token.
            compressor: `None` is the default one, shared with `ZTokenLLM`.
            store: `None` is the default one, shared with `ZTokenLLM`.
            kwargs: fields of `BaseNodePostprocessor`.
        """
        super().__init__(rate=rate, **kwargs)  # type: ignore[call-arg]
        self._compressor = compressor
        self._store = store

    @classmethod
    def class_name(cls) -> str:
        return "ZTokenPostprocessor"

    @property
    def compressor(self) -> ZCompressor:
        """The compressor in use; the default one is loaded when first asked for."""
        if self._compressor is None:
            self._compressor = default_compressor()
        return self._compressor

    @property
    def store(self) -> ZStore:
        """The store in use; the default one is opened when first asked for."""
        if self._store is None:
            self._store = default_store()
        return self._store

    @property
    def stats(self) -> PostprocessorStats:
        """Counters as they stand now."""
        with self._stats_lock:
            return self._stats

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        compressor, store = self.compressor, self.store
        start = time.perf_counter()
        texts = [
            item.node.get_content(MetadataMode.NONE) for item in nodes if _has_text_only(item.node)
        ]
        sequences, compressed = store.resolve(compressor, texts, self.rate)
        handles = iter([encode_handle(z, store.secret) for z in sequences])
        processed = [
            NodeWithScore(
                node=ZTokenNode.of(item.node, next(handles))
                if _has_text_only(item.node)
                else _escaped(item.node),
                score=item.score,
            )
            for item in nodes
        ]
        self._count(len(texts), compressed, 1000 * (time.perf_counter() - start))
        return processed

    def _count(self, nodes: int, compressed: int, ms: float) -> None:
        with self._stats_lock:
            now = self._stats
            self._stats = PostprocessorStats(
                nodes=now.nodes + nodes,
                compressed=now.compressed + compressed,
                hits=now.hits + nodes - compressed,
                ms=now.ms + ms,
            )


def _has_text_only(node: BaseNode) -> bool:
    """Whether the node is text, and there is some."""
    if isinstance(node, Node):
        media = (node.image_resource, node.audio_resource, node.video_resource)
        is_text = not any(media)
    else:
        is_text = isinstance(node, TextNode) and not isinstance(node, ImageNode)
    return is_text and bool(node.get_content(MetadataMode.NONE).strip())


def _escaped(node: BaseNode) -> BaseNode:
    """The node itself, unless what it shows the LLM would be taken for a handle."""
    if not has_handles(node.get_content(MetadataMode.LLM)):
        return node
    return ZTokenNode.of(node, escape_handles(node.get_content(MetadataMode.NONE)))
