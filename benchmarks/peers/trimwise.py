"""Trimwise: passages by word and embedding similarity."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

from embed import embed_queries, embed_texts
from peers.text import count
from peers.tiktoken_files import tiktoken_files
from ztok_rag.evaluation import JOIN, Shorten


class Trimwise(Shorten):
    """Keep the passages that LlamaIndex's Trimwise postprocessor chooses, in text order.

    The strategy is `hybrid`: word similarity and similarity by the default embedding model. A
    passage is a paragraph. Of a paragraph longer than the budget, the first words are kept.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def _trimmer(self) -> Any:
        from trimwise import TrimConfig, Trimmer

        def embed(query: str, passages: Sequence[str]) -> tuple[Any, Any]:
            return embed_queries([query])[0].tolist(), embed_texts(passages).tolist()

        return Trimmer(TrimConfig(token_encoding="cl100k_base"), embedding_callback=embed)

    def __call__(self, question: str, chunks: Sequence[str], budget: int) -> str:
        from llama_index.core.schema import NodeWithScore, TextNode
        from llama_index.postprocessor.trimwise import TrimwiseNodePostprocessor

        nodes = [NodeWithScore(node=TextNode(text=chunk)) for chunk in chunks]
        limit = budget
        while True:
            postprocessor = TrimwiseNodePostprocessor(
                limit=limit,
                strategy="hybrid",
                trimmer=self._trimmer,
                token_counter=partial(count, self.tokenizer),
            )
            with tiktoken_files():
                kept = postprocessor.postprocess_nodes(nodes, query_str=question)
            text = JOIN.join(item.node.get_content() for item in kept)
            # The postprocessor does not count the blank lines between passages.
            over = count(self.tokenizer, text) - budget
            if over <= 0 or not limit:
                return text
            limit = max(0, limit - over)
