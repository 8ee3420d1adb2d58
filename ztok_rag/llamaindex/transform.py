"""`ZTokenTransform`: compresses nodes while LlamaIndex ingests them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.schema import BaseNode, MetadataMode, TransformComponent

from ztok_rag.llamaindex.arguments import refuse_unknown_fields
from ztok_rag.llamaindex.node import has_text_only
from ztok_rag.llamaindex.postprocessor import FORMER_NAMES
from ztok_rag.llamaindex.settings import user_embedding
from ztok_rag.selection.query_aware import QueryAwareSelector
from ztok_rag.storage.defaults import default_compressor, default_store
from ztok_rag.storage.store import ZStore

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding

    from ztok_rag.codec.compressor import ZCompressor


class ZTokenTransform(TransformComponent):
    """Puts the Z-tokens of every node's text into the store; the nodes pass unchanged.

    Put it after the splitter in an `IngestionPipeline`. A `ZTokenPostprocessor` with the same
    compressor and store then compresses nothing, whatever its rate: Z-tokens are kept for all
    rates at once.
    """

    query_aware: bool = Field(default=True, description="Embed sentences, too.")

    _compressor: ZCompressor | None = PrivateAttr(default=None)
    _store: ZStore | None = PrivateAttr(default=None)
    _embed_model: BaseEmbedding | None = PrivateAttr(default=None)

    def __init__(
        self,
        *,
        query_aware: bool = True,
        compressor: ZCompressor | None = None,
        store: ZStore | None = None,
        embed_model: BaseEmbedding | None = None,
        **kwargs: Any,
    ) -> None:
        """Set up; nothing is loaded before the first nodes come.

        Args:
            query_aware: embed the sentences, too, as `ZTokenPostprocessor(query_aware=True)` needs.
            compressor: `None` is the default one, shared with `ZTokenPostprocessor`.
            store: `None` is the default one, shared likewise.
            embed_model: the postprocessor's; `None` is `Settings.embed_model` where
                it was set, else `ztok_rag.default_embedding()`.
            kwargs: fields of `TransformComponent`.

        Raises:
            ZtokError: there is no argument of that name.
        """
        refuse_unknown_fields(type(self), kwargs, FORMER_NAMES)
        super().__init__(query_aware=query_aware, **kwargs)  # type: ignore[call-arg]
        self._compressor = compressor
        self._store = store
        self._embed_model = embed_model

    @classmethod
    def class_name(cls) -> str:
        return "ZTokenTransform"

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Compress what the store does not hold yet."""
        if self._compressor is None:
            self._compressor = default_compressor()
        if self._store is None:
            self._store = default_store()
        texts = [node.get_content(MetadataMode.NONE) for node in nodes if has_text_only(node)]
        if self.query_aware:
            embed_model = self._embed_model or user_embedding()
            QueryAwareSelector.over(self._compressor, self._store, embed_model).prepare(texts)
        else:
            self._store.resolve(self._compressor, texts)
        return nodes
