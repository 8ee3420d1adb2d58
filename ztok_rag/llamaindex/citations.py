"""Where the answer of a query engine stands in the texts of its source nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llama_index.core.schema import MetadataMode, NodeWithScore

from ztok_rag.codec.citations import locate, locate_in_text
from ztok_rag.codec.sequence import sequences_of
from ztok_rag.llamaindex.node import ZTokenNode
from ztok_rag.storage.handle import has_handles, split_prompt

if TYPE_CHECKING:
    from ztok_rag.llamaindex.llm import ZTokenLLM


@dataclass(frozen=True)
class Citation:
    """A place where an answer stands.

    Attributes:
        source: index of the node in the response's `source_nodes`.
        node_id: id of that node.
        start: first character, in the text of the node.
        end: character after the last one.
        text: what stands there; the answer itself where the node shows Z-tokens alone, as those do
            that `CitationQueryEngine` makes.
    """

    source: int
    node_id: str
    start: int
    end: int
    text: str


def find_citations(response: Any, llm: ZTokenLLM, *, answer: str | None = None) -> list[Citation]:
    """Every place where an answer stands, word for word, in the texts that it was read from.

    Args:
        response: of a query or chat engine, with `source_nodes`.
        llm: that answered, or another of the same store and checkpoint.
        answer: its text, where it was streamed and the caller has read the stream; `None` is the
            text of the response.

    Returns:
        In the order of the source nodes. Empty where the answer stands nowhere, as one in the
        LLM's own words does.

    Raises:
        HandleError: the nodes are of another store or checkpoint.
    """
    answer = (str(response) if answer is None else answer).strip()
    return [
        citation
        for number, item in enumerate(response.source_nodes)
        for citation in _in_node(answer, number, item, llm)
    ]


def _in_node(answer: str, number: int, item: NodeWithScore, llm: ZTokenLLM) -> list[Citation]:
    shown = item.node.get_content(MetadataMode.LLM)
    text = item.node.get_content(MetadataMode.NONE)
    if has_handles(shown):
        reader = llm.reader
        code = reader.model.token_code
        segments = split_prompt(shown, llm.store.secret, reader.fingerprint, code)
        sequences = sequences_of(segments)
        places = [(p["start"], p["end"]) for p in locate(answer, sequences, reader.tokenizer)]
    else:
        places = locate_in_text(answer, text)
    # A node that is made of handles does not hold the text that they stand for.
    has_text = isinstance(item.node, ZTokenNode) or not has_handles(text)
    return [
        Citation(number, item.node.node_id, start, end, text[start:end] if has_text else answer)
        for start, end in places
    ]
