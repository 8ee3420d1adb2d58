"""`ZTokenTransform`: compresses nodes while LlamaIndex ingests them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.schema import BaseNode, MetadataMode, TransformComponent

from ztok_rag.errors import ZtokError
from ztok_rag.inputs import as_list
from ztok_rag.llamaindex.arguments import refuse_unknown_fields
from ztok_rag.llamaindex.embedding import embedding_name
from ztok_rag.llamaindex.node import has_text_only
from ztok_rag.llamaindex.postprocessor import FORMER_NAMES
from ztok_rag.llamaindex.sending import MadeAgain
from ztok_rag.llamaindex.settings import user_embedding
from ztok_rag.llamaindex.threads import in_thread
from ztok_rag.selection.embedding import DEFAULT_EMBEDDING
from ztok_rag.selection.query_aware import QueryAwareSelector
from ztok_rag.storage.defaults import default_compressor, default_fingerprint, default_store
from ztok_rag.storage.store import ZStore

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding

    from ztok_rag.codec.compressor import ZCompressor


_MADE_WITH = "made_with"


class ZTokenTransform(MadeAgain, TransformComponent):
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

    def _parts(self) -> dict[str, Any]:
        return {
            "compressor": self._compressor,
            "store": self._store,
            "embed_model": self._embed_model or user_embedding(),
        }

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """The settings, and which checkpoint, store and embedding model they are of.

        An `IngestionPipeline` with a cache runs a transformation once per text and `to_dict`. With
        another store, or a new one in the place of one that was deleted, it runs again.
        """
        compressor, store = (
            self._compressor,
            self._store if self._store is not None else default_store(),
        )
        embed_model = self._embed_model or user_embedding()
        made_with = {
            "checkpoint": default_fingerprint() if compressor is None else compressor.fingerprint,
            "store": store.name,
            "store_id": store.id,
            "embed_model": DEFAULT_EMBEDDING
            if embed_model is None
            else embedding_name(embed_model),
        }
        return {**super().to_dict(**kwargs), _MADE_WITH: made_with}

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """A transformation with the settings and the store of `to_dict`.

        Args:
            data: what `to_dict` gave.
            kwargs: further arguments of the class; the compressor and the embedding model, where
                they are not the default ones, and a store in Redis that needs a password.

        Raises:
            ZtokError: the checkpoint or the embedding model is another.
        """
        data = dict(data)
        if (made_with := data.pop(_MADE_WITH, None)) and "store" not in kwargs:
            kwargs = {"store": ZStore(made_with["store"]), **kwargs}
        made = super().from_dict(data, **kwargs)
        if made_with:
            now = made.to_dict()[_MADE_WITH]
            for name in ("checkpoint", "embed_model"):
                if now[name] != made_with[name]:
                    raise ZtokError(
                        f"the {cls.class_name()} was made with the {name} {made_with[name]}, not "
                        f"{now[name]}; pass its compressor and embed_model to from_dict()."
                    )
        return made

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Compress what the store does not hold yet."""
        nodes = as_list(nodes, "nodes")
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

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """As calling it, in a thread, so that the event loop goes on."""
        return await in_thread(self.__call__, nodes, **kwargs)
