"""Documents into chunks, and chunks into Z-tokens."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llama_index.core import Document
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import BaseNode, MetadataMode
from tqdm.auto import tqdm

from ztok_rag.errors import ZtokError
from ztok_rag.selection.query_aware import QueryAwareSelector
from ztok_rag.storage.backends import in_parts

CHUNKS_AT_ONCE = 64
"""Texts that are compressed between two looks at the progress, and in one block on Ray."""


def split_documents(
    documents: Sequence[Document], tokenizer: Any, *, chunk_size: int, chunk_overlap: int
) -> list[BaseNode]:
    """The chunks of documents. Their ids are the same each time, so that work can be resumed.

    Args:
        documents: any number.
        tokenizer: of the base LLM.
        chunk_size: longest chunk in tokens, metadata included.
        chunk_overlap: tokens that neighbouring chunks share.

    Raises:
        ZtokError: the metadata of a document leaves no room for its text.
    """
    if not documents:
        return []

    def tokenize(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    splitter = SentenceSplitter(
        chunk_size=chunk_size, chunk_overlap=chunk_overlap, tokenizer=tokenize
    )
    nodes: list[BaseNode] = []
    for document in documents:
        splitter.id_func = _ids_of(document)
        try:
            nodes += splitter.get_nodes_from_documents([document])
        except ValueError as error:  # the metadata leaves no room for text
            raise ZtokError(
                f"the document {document.doc_id!r} cannot be split ({error}); shorten its "
                "metadata, or exclude it from what the LLM and the embedding model see."
            ) from error
    return nodes


def compress_texts(
    selector: QueryAwareSelector, texts: Iterable[str], *, total: int, show_progress: bool
) -> int:
    """Put the Z-tokens of texts into the selector's store.

    Args:
        selector: compresses them.
        texts: read once, and not held.
        total: their number.
        show_progress: whether to show a progress bar.

    Returns:
        The number of texts that had to be compressed.
    """
    compressed = 0
    with tqdm(total=total, desc="Compressing", disable=not show_progress) as bar:
        for batch in in_parts(texts, CHUNKS_AT_ONCE):
            compressed += selector.prepare(list(dict.fromkeys(batch)))
            bar.update(len(batch))
    return compressed


def chunk_text(node: BaseNode) -> str:
    """The text that is compressed."""
    return node.get_content(MetadataMode.NONE)


def _ids_of(document: Document) -> Callable[[int, BaseNode], str]:
    """Ids of a document's chunks, which depend on all that the document holds."""
    content = document.hash
    return lambda i, _: str(uuid.uuid5(uuid.NAMESPACE_OID, f"{document.doc_id}\0{content}\0{i}"))
