"""`ZTokenPostprocessor`: the LLM reads retrieved nodes as Z-tokens."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle

from ztok_rag.codec.sequence import ZSequence
from ztok_rag.errors import ZtokError, check_rate
from ztok_rag.forks import ForkSafeLock
from ztok_rag.inputs import repair_surrogates
from ztok_rag.llamaindex.arguments import refuse_unknown_fields
from ztok_rag.llamaindex.events import ZTokenLookupEvent, dispatcher
from ztok_rag.llamaindex.node import ZTokenNode, has_text_only
from ztok_rag.llamaindex.sending import MadeAgain
from ztok_rag.llamaindex.settings import reads_z_tokens, user_embedding, user_llm
from ztok_rag.llamaindex.threads import in_thread
from ztok_rag.llamaindex.token_counting import install_handle_tokenizer
from ztok_rag.selection.budget import count_fitting, plan_rates
from ztok_rag.selection.query_aware import QueryAwareSelector
from ztok_rag.selection.selected_text import selected_text
from ztok_rag.storage.defaults import default_compressor, default_store
from ztok_rag.storage.handle import LONGEST, encode_handles, escape_handles, has_handles
from ztok_rag.storage.store import ZStore

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.llms import LLM

    from ztok_rag.codec.compressor import ZCompressor

Content = ZSequence | str | None
"""What is read of a node: its Z-tokens, its text as it is, or nothing for want of room."""

ContextFormat = Literal["z-tokens", "text", "decompressed"]

FORMER_NAMES = {"focus": "query_aware", "show": "context_format"}
"""Arguments of `ZTokenPostprocessor` and `ZTokenTransform` that have another name now."""

_RESERVED = 1 / 8
"""Share of a prompt's positions that is kept for its template, its Z-tokens and the answer."""

_HERE = "\0"  # stands for what is read of a node
_SHOW_TEXT = 'give ZTokenPostprocessor context_format="text" or context_format="decompressed"'


@dataclass(frozen=True)
class PostprocessorStats:
    """What a `ZTokenPostprocessor` has done since it was made.

    Attributes:
        nodes: nodes replaced by Z-tokens.
        compressed: nodes of these that had to be compressed.
        hits: nodes of these whose Z-tokens the store held.
        ms: wall-clock milliseconds, without loading of models.
    """

    nodes: int = 0
    compressed: int = 0
    hits: int = 0
    ms: float = 0.0


class ZTokenPostprocessor(MadeAgain, BaseNodePostprocessor):
    """Shows the LLM each retrieved text as Z-tokens; for use with `ZTokenLLM`.

    A text in the store is not compressed again, whatever the rate. A response's `source_nodes`
    keep their ids, scores, metadata and source text. Put it after every postprocessor that reads
    or edits text.

    With `query_aware`, the nodes of a query share a budget, which is their source tokens divided
    by the rate. It is spent on the pieces of text that are likely to contain the answer. Their
    Z-tokens are selected from those in the store by a small network that reads them, and by an
    embedding model that runs on the question.

    With a `token_budget`, the nodes share that many input positions, metadata included. Without
    `query_aware` or a query, a node with a better score gets a lower rate, down to raw text. Nodes
    that do not fit at rate 32 are left out, those with the lowest scores first, with a warning.

    For an LLM that cannot read Z-tokens, `context_format` makes the nodes show text: `"text"` is
    the selected words of the source in reading order, in about as many tokens as there would be
    Z-tokens, with an ellipsis wherever words were left out; `"decompressed"` is the text out of
    the Z-tokens, which up to rate 16 is all that was not left out for the question. No handle is
    made for an LLM that cannot read it. That LLM is the one in `llm`, else `Settings.llm` where it
    was set.

    Nodes without text, and image, audio and video nodes, stay as they are. Text that looks like a
    handle is escaped in all nodes.
    """

    rate: float = Field(default=4.0, description="Source tokens per Z-token.")
    token_budget: int | None = Field(
        default=None, ge=1, description="Input positions of all nodes; replaces the rate."
    )
    query_aware: bool = Field(default=True, description="Select by the question.")
    context_format: ContextFormat = Field(
        default="z-tokens", description="What the LLM reads in place of the text."
    )

    _has_llm: bool = PrivateAttr(default=False)
    _compressor: ZCompressor | None = PrivateAttr(default=None)
    _store: ZStore | None = PrivateAttr(default=None)
    _embed_model: BaseEmbedding | None = PrivateAttr(default=None)
    _selector: QueryAwareSelector | None = PrivateAttr(default=None)
    _stats: PostprocessorStats = PrivateAttr(default_factory=PostprocessorStats)
    _lock: Any = PrivateAttr(default_factory=ForkSafeLock)

    def __init__(
        self,
        *,
        rate: float = 4.0,
        token_budget: int | None = None,
        query_aware: bool = True,
        context_format: ContextFormat = "z-tokens",
        llm: LLM | None = None,
        compressor: ZCompressor | None = None,
        store: ZStore | None = None,
        embed_model: BaseEmbedding | None = None,
        **kwargs: Any,
    ) -> None:
        """Set up; nothing is loaded before the first nodes come.

        Args:
            rate: source tokens per Z-token, at least 1.
            token_budget: the most input positions of all nodes, in place of `rate`.
            query_aware: select Z-tokens by the question.
            context_format: what the LLM reads in place of the text.
            llm: the LLM that will read, to make sure that it can; `None` is `Settings.llm` where
                it was set, else any.
            compressor: `None` is the default one, shared with `ZTokenLLM`.
            store: `None` is the default one, shared with `ZTokenLLM`.
            embed_model: embeds sentences and questions; `None` is `Settings.embed_model` where
                it was set, else `ztok_rag.default_embedding()`.
            kwargs: fields of `BaseNodePostprocessor`.

        Raises:
            ZtokError: there is no argument of that name, the rate is below 1, or `llm` cannot read
                Z-tokens and `context_format` is `"z-tokens"`.
        """
        refuse_unknown_fields(type(self), kwargs, FORMER_NAMES)
        check_rate(rate)
        if llm is not None and context_format == "z-tokens" and not reads_z_tokens(llm):
            raise ZtokError(
                f"{llm.class_name()} cannot read Z-tokens; answer with ZTokenLLM, or {_SHOW_TEXT}."
            )
        super().__init__(  # type: ignore[call-arg]
            rate=rate,
            token_budget=token_budget,
            query_aware=query_aware,
            context_format=context_format,
            **kwargs,
        )
        self._has_llm = llm is not None
        self._compressor = compressor
        self._store = store
        self._embed_model = embed_model
        if context_format == "z-tokens":
            install_handle_tokenizer()

    @classmethod
    def class_name(cls) -> str:
        return "ZTokenPostprocessor"

    def _parts(self) -> dict[str, Any]:
        return {
            "compressor": self._compressor,
            "store": self._store,
            "embed_model": self._embed_model or user_embedding(),
        }

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
    def selector(self) -> QueryAwareSelector:
        """Selects Z-tokens for a question; made when first asked for."""
        with self._lock:
            if self._selector is None:
                self._selector = QueryAwareSelector.over(
                    self.compressor, self.store, self._embed_model or user_embedding()
                )
            return self._selector

    @property
    def stats(self) -> PostprocessorStats:
        """Counters as they stand now."""
        with self._lock:
            return self._stats

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        check_rate(self.rate)  # which may have been assigned
        self._check_reader()
        # Load models before the clock starts.
        _ = self.compressor, self.store
        start = time.perf_counter()
        has_text = [has_text_only(item.node) for item in nodes]
        items = [item for item, text in zip(nodes, has_text, strict=True) if text]
        texts = [_clean_text(item.node) for item in items]
        if query_bundle is not None:
            self._check_question(query_bundle.query_str)
        if self.query_aware and query_bundle is not None:
            contents, compressed = self._for_question(items, texts, query_bundle.query_str)
        else:
            contents, compressed = self._by_score(items, texts)
        shown = iter(self._shown(texts, contents))
        processed = []
        for item, text in zip(nodes, has_text, strict=True):
            if not text:
                processed.append(NodeWithScore(node=_escaped(item.node), score=item.score))
            elif (llm_text := next(shown)) is not None:
                node = ZTokenNode.of(item.node, llm_text)
                processed.append(NodeWithScore(node=node, score=item.score))
        if left_out := sum(content is None for content in contents):
            warnings.warn(
                f"{left_out} of {len(contents)} nodes are left out, because {self.token_budget} "
                "positions have no room for them; raise token_budget, or retrieve fewer nodes.",
                stacklevel=2,
            )
        ms = 1000 * (time.perf_counter() - start)
        sequences = [z for z in contents if isinstance(z, ZSequence)]
        self._count(len(sequences), compressed, ms)
        dispatcher.event(
            ZTokenLookupEvent(
                hits=len(sequences) - compressed,
                misses=compressed,
                source_tokens=sum(z.source_tokens for z in sequences),
                z_tokens=sum(len(z) for z in sequences),
                ms=ms,
            )
        )
        return processed

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return await in_thread(self._postprocess_nodes, nodes, query_bundle)

    def _check_reader(self) -> None:
        """Make sure that handles can be read, and that LlamaIndex counts them as Z-tokens."""
        if self.context_format != "z-tokens":
            return
        llm = user_llm()
        if not self._has_llm and llm is not None and not reads_z_tokens(llm):
            raise ZtokError(
                f"Settings.llm is {llm.class_name()}, which cannot read Z-tokens; if a ZTokenLLM "
                f"answers, name it in ZTokenPostprocessor's llm, else {_SHOW_TEXT}."
            )
        if install_handle_tokenizer():
            warnings.warn(
                "LlamaIndex's global tokenizer was replaced after this ZTokenPostprocessor was "
                "made; query engines made in between count handles as text and may cut them: "
                "make those again.",
                stacklevel=2,
            )

    def _check_question(self, question: str) -> None:
        """Make sure that a prompt of Z-tokens has room for the question."""
        longest = int(self.compressor.reader.max_positions * (1 - _RESERVED))
        if self.context_format != "z-tokens" or len(question) <= longest:
            return
        if (count := self.compressor.count_tokens(question)) > longest:
            raise ZtokError(
                f"the question takes {count} tokens, and beside Z-tokens and answer a prompt has "
                f"room for {longest}; shorten it."
            )

    def _for_question(
        self, items: list[NodeWithScore], texts: list[str], question: str
    ) -> tuple[list[Content], int]:
        """What is read of each node for a question, and how many nodes were compressed."""
        fitting, budget = list(range(len(items))), None
        if self.token_budget is not None:
            order, sizes, overheads = self._measure(items, texts)
            count = count_fitting(sizes, overheads, self.token_budget, self.compressor.slots)
            fitting = sorted(order[:count])
            budget = self.token_budget - sum(overheads[:count])
            budget -= budget // (LONGEST + 1)  # spaces between the handles of one text
        sequences, compressed = self.selector.compose(
            question, [texts[i] for i in fitting], self.rate, budget=budget
        )
        contents: list[Content] = [None] * len(items)
        for i, z in zip(fitting, sequences, strict=True):
            contents[i] = z
        return contents, compressed

    def _by_score(self, items: list[NodeWithScore], texts: list[str]) -> tuple[list[Content], int]:
        """What is read of each node without a question, and how many nodes were compressed."""
        if self.token_budget is None:
            if self.rate == 1:
                return [*self.compressor.compress(texts, 1.0)], 0
            resolved, compressed = self.store.resolve(self.compressor, texts)
            return [own.at(self.rate, self.compressor.slots) for own in resolved], compressed
        rates = self._rates_within_budget(items, texts)
        contents: list[Content] = [
            text if rate == 1 else None for text, rate in zip(texts, rates, strict=True)
        ]
        coarse = [(i, rate) for i, rate in enumerate(rates) if rate is not None and rate > 1]
        resolved, compressed = self.store.resolve(self.compressor, [texts[i] for i, _ in coarse])
        for (i, rate), own in zip(coarse, resolved, strict=True):
            contents[i] = own.at(rate, self.compressor.slots)
        return contents, compressed

    def _rates_within_budget(
        self, items: list[NodeWithScore], texts: list[str]
    ) -> list[float | None]:
        """The rate of each node, 1 for its text; `None` where the budget has no room for it."""
        assert self.token_budget is not None
        order, sizes, overheads = self._measure(items, texts)
        budget = self.token_budget - self.token_budget // (LONGEST + 1)
        rates: list[float | None] = [None] * len(items)
        planned = plan_rates(sizes, overheads, budget, self.compressor.slots)
        for i, rate in zip(order, planned, strict=True):
            rates[i] = rate
        return rates

    def _measure(
        self, items: list[NodeWithScore], texts: list[str]
    ) -> tuple[list[int], list[int], list[int]]:
        """Places of the nodes, best score first; then tokens of their texts, and of the rest."""
        count = self.compressor.count_tokens
        best_first = sorted(range(len(items)), key=lambda i: -(items[i].score or 0.0))
        sizes = [count(texts[i]) for i in best_first]
        nodes = [items[i].node for i in best_first]
        around = [ZTokenNode.of(n, _HERE).get_content(MetadataMode.LLM) for n in nodes]
        overheads = [sum(map(count, content.split(_HERE))) for content in around]
        return best_first, sizes, overheads

    def _shown(self, texts: Sequence[str], contents: Sequence[Content]) -> list[str | None]:
        """What the prompt holds of each node: handles, or text without anything like a handle."""
        shown: list[str | None] = []
        for text, content in zip(texts, contents, strict=True):
            if not isinstance(content, ZSequence):
                shown.append(content and escape_handles(content))
            elif self.context_format == "z-tokens":
                shown.append(encode_handles(content, self.store.secret))
            else:
                shown.append(escape_handles(self._as_text(text, content)))
        return shown

    def _as_text(self, text: str, z: ZSequence) -> str:
        """What Z-tokens of a text are for an LLM that cannot read them."""
        if self.context_format == "text":
            (tokens,) = self.compressor.tokenize([text])
            return selected_text(text, tokens.starts, z)
        if not z.digest:  # parts were left out by choice, and stay so
            return self.compressor.held_text(z)
        with warnings.catch_warnings():  # above the rate of exact decompression, it was asked for
            warnings.filterwarnings("ignore", message=r"text \d+ did not come back exactly")
            return self.compressor.decompress([z])[0]

    def _count(self, nodes: int, compressed: int, ms: float) -> None:
        with self._lock:
            now = self._stats
            self._stats = PostprocessorStats(
                nodes=now.nodes + nodes,
                compressed=now.compressed + compressed,
                hits=now.hits + nodes - compressed,
                ms=now.ms + ms,
            )


def _clean_text(node: BaseNode) -> str:
    text = node.get_content(MetadataMode.NONE)
    return repair_surrogates(text, f"the node {node.node_id!r}")


def _escaped(node: BaseNode) -> BaseNode:
    """The node itself, or if the LLM would see a handle in it, a copy with that escaped."""
    if not has_handles(node.get_content(MetadataMode.LLM)):
        return node
    return ZTokenNode.of(node, escape_handles(node.get_content(MetadataMode.NONE)))
