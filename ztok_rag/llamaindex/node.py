"""`ZTokenNode`: a retrieved node that shows the LLM something other than its text."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from llama_index.core.base.llms.types import BaseContentBlock, TextBlock
from llama_index.core.bridge.pydantic import Field
from llama_index.core.schema import BaseNode, ImageNode, IndexNode, MetadataMode, Node, TextNode

from ztok_rag.storage.handle import escape_handles

_KEPT_FIELDS = (
    "id_",
    "embedding",
    "metadata",
    "excluded_embed_metadata_keys",
    "excluded_llm_metadata_keys",
    "relationships",
    "metadata_template",
    "metadata_separator",
    "mimetype",
    "start_char_idx",
    "end_char_idx",
    "text_template",
)


class ZTokenNode(TextNode):
    """A text node whose content in `MetadataMode.LLM` is `llm_text` in place of `text`.

    The LLM gets the metadata as LlamaIndex formats it, with handles in it escaped. In every other
    mode the content is the source text, and so is `text`.
    """

    llm_text: str = Field(
        description="What the LLM reads in place of the text: a handle, or escaped text."
    )

    @classmethod
    def of(cls, node: BaseNode, llm_text: str) -> ZTokenNode:
        """A copy of `node`, with its id and metadata, that shows the LLM `llm_text`.

        It is an instance of the class of `node`, too, if that is a kind of `TextNode`.
        """
        kind = _kind_of(type(node)) if isinstance(node, TextNode) else ZTokenNode
        names = {*_KEPT_FIELDS, *(kind.model_fields.keys() - {"text", "llm_text"})}
        kept: dict[str, Any] = {name: getattr(node, name) for name in names if hasattr(node, name)}
        return kind(text=node.get_content(MetadataMode.NONE), llm_text=llm_text, **kept)

    @classmethod
    def class_name(cls) -> str:
        return "ZTokenNode"

    def get_metadata_str(self, mode: MetadataMode = MetadataMode.ALL) -> str:
        metadata = super().get_metadata_str(mode)
        return escape_handles(metadata) if mode == MetadataMode.LLM else metadata

    def get_content(self, metadata_mode: MetadataMode = MetadataMode.NONE) -> str:
        if metadata_mode != MetadataMode.LLM:
            return super().get_content(metadata_mode)
        metadata = self.get_metadata_str(metadata_mode).strip()
        if not metadata:
            return self.llm_text
        return self.text_template.format(content=self.llm_text, metadata_str=metadata).strip()

    def get_content_blocks(
        self, metadata_mode: MetadataMode = MetadataMode.NONE
    ) -> list[BaseContentBlock]:
        if metadata_mode != MetadataMode.LLM:
            return super().get_content_blocks(metadata_mode)
        return [*self.get_metadata_content_blocks(metadata_mode), TextBlock(text=self.llm_text)]

    def set_content(self, value: str) -> None:
        """Replace the text. The LLM is then shown the new text, because a handle is of the old."""
        super().set_content(value)
        self.llm_text = escape_handles(value)


class ZTokenIndexNode(ZTokenNode, IndexNode):
    """An `IndexNode` that shows the LLM something other than its text."""

    @classmethod
    def class_name(cls) -> str:
        return "ZTokenIndexNode"


@lru_cache
def _kind_of(cls: type[TextNode]) -> type[ZTokenNode]:
    """The class of copies of nodes of `cls`."""
    if issubclass(cls, ZTokenNode):
        return cls
    if cls is TextNode:
        return ZTokenNode
    if cls is IndexNode:
        return ZTokenIndexNode
    namespace = {"__module__": __name__, "__reduce__": _reduce}
    return type(f"ZToken{cls.__name__}", (ZTokenNode, cls), namespace)


def _reduce(node: ZTokenNode) -> tuple[Any, ...]:
    """A class that was made when it was needed is found again by what it was made of."""
    return _empty, (type(node).__mro__[2],), node.__getstate__()


def _empty(cls: type[TextNode]) -> ZTokenNode:
    kind = _kind_of(cls)
    return kind.__new__(kind)


def has_text_only(node: BaseNode) -> bool:
    """Whether the node has text with words in it, and no image, audio or video."""
    if isinstance(node, Node):
        media = (node.image_resource, node.audio_resource, node.video_resource)
        is_text = not any(media)
    else:
        is_text = isinstance(node, TextNode) and not isinstance(node, ImageNode)
    return is_text and bool(node.get_content(MetadataMode.NONE).strip())
