"""`ZTokenPostprocessor`: replaces retrieved text by Z-tokens on its way into the prompt."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle

from ztok_rag.codec.sequence import ZSequence
from ztok_rag.errors import ZtokError
from ztok_rag.llamaindex.events import ZTokenLookupEvent, dispatcher
from ztok_rag.llamaindex.node import ZTokenNode, has_text_only
from ztok_rag.llamaindex.token_counting import handles_are_counted
from ztok_rag.selection.budget import count_fitting, plan_rates
from ztok_rag.selection.focus import QuestionFocus
from ztok_rag.storage.defaults import default_compressor, default_store
from ztok_rag.storage.handle import encode_handles, escape_handles, has_handles
from ztok_rag.storage.store import ZStore

if TYPE_CHECKING:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.llms import LLM

    from ztok_rag.codec.compressor import ZCompressor


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

    Texts already in the store are not compressed again, at whatever rate they are read. Ids,
    scores, metadata and source text of the nodes stay available on a response's `source_nodes`.
    Put it after every postprocessor that reads or edits text.

    With `focus`, the Z-tokens of a query's nodes are spent by the question: on what may answer it
    and little else, at most as many in all as the rate says. They are composed of what is
    cached, by a small network that reads them, and an embedding model that runs on the question.

    With a `token_budget`, the nodes share that many positions, metadata included, by the
    question too; without `focus` or a query, the better a node's score, the lower its rate, down
    to raw text. What does not fit at rate 32 is left out.

    For an LLM that cannot read Z-tokens, `show` makes the nodes show text: the `"anchors"`, the
    source tokens that the Z-tokens name, or the `"decompressed"` text. Name that LLM in `llm`,
    and a postprocessor that would send it handles refuses to. Without a name it refuses as long
    as no `ZTokenLLM` has been made, since there is none to read them.

    Nodes without text, and image, audio and video nodes, stay as they are. Text they show
    the LLM that would be taken for a handle is escaped.
    """

    rate: float = Field(default=4.0, ge=1.0, description="Source tokens per Z-token.")
    token_budget: int | None = Field(
        default=None, ge=1, description="Positions that all nodes share; replaces the rate."
    )
    focus: bool = Field(default=True, description="Spend the Z-tokens by the question.")
    show: Literal["z-tokens", "anchors", "decompressed"] = Field(
        default="z-tokens", description="What the LLM gets to read."
    )

    _reader_known: bool = PrivateAttr(default=False)
    _compressor: ZCompressor | None = PrivateAttr(default=None)
    _store: ZStore | None = PrivateAttr(default=None)
    _embed_model: BaseEmbedding | None = PrivateAttr(default=None)
    _question_focus: QuestionFocus | None = PrivateAttr(default=None)
    _stats: PostprocessorStats = PrivateAttr(default_factory=PostprocessorStats)
    _stats_lock: Any = PrivateAttr(default_factory=threading.Lock)

    def __init__(
        self,
        *,
        rate: float = 4.0,
        token_budget: int | None = None,
        focus: bool = True,
        show: Literal["z-tokens", "anchors", "decompressed"] = "z-tokens",
        llm: LLM | None = None,
        compressor: ZCompressor | None = None,
        store: ZStore | None = None,
        embed_model: BaseEmbedding | None = None,
        **kwargs: Any,
    ) -> None:
        """Set up; nothing is loaded before the first nodes come.

        Args:
            rate: source tokens per Z-token; without `focus`, one between 1 and 2 is 2.
            token_budget: positions that all nodes share, in place of `rate`.
            focus: spend the Z-tokens by the question.
            show: what the LLM gets to read.
            llm: the LLM that will read, to make sure that it can.
            compressor: `None` is the default one, shared with `ZTokenLLM`.
            store: `None` is the default one, shared with `ZTokenLLM`.
            embed_model: finds what the question is about; `None` is the default one.
            kwargs: fields of `BaseNodePostprocessor`.

        Raises:
            ZtokError: `llm` cannot read Z-tokens, and `show` is `"z-tokens"`.
        """
        if llm is not None and show == "z-tokens" and not hasattr(llm, "reads_z_tokens"):
            raise ZtokError(
                f"{llm.class_name()} cannot read Z-tokens; answer with ZTokenLLM, or give "
                'ZTokenPostprocessor show="anchors" or show="decompressed".'
            )
        super().__init__(  # type: ignore[call-arg]
            rate=rate, token_budget=token_budget, focus=focus, show=show, **kwargs
        )
        self._reader_known = llm is not None
        self._compressor = compressor
        self._store = store
        self._embed_model = embed_model

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
    def question_focus(self) -> QuestionFocus:
        """What spends Z-tokens by a question; made when first asked for."""
        if self._question_focus is None:
            self._question_focus = QuestionFocus.over(
                self.compressor, self.store, self._embed_model
            )
        return self._question_focus

    @property
    def stats(self) -> PostprocessorStats:
        """Counters as they stand now."""
        with self._stats_lock:
            return self._stats

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if self.show == "z-tokens" and not (self._reader_known or handles_are_counted()):
            raise ZtokError(
                "no ZTokenLLM has been made, and no other LLM can read Z-tokens; make the one that "
                "answers before nodes are retrieved for it, or name it in ZTokenPostprocessor's "
                'llm; for other LLMs use show="anchors" or show="decompressed".'
            )
        # Loading is no part of the time.
        _ = self.compressor, self.store
        start = time.perf_counter()
        texts = [item for item in nodes if has_text_only(item.node)]
        replaced: dict[int, BaseNode | None] = {}
        if self.focus and query_bundle is not None:
            chosen, sequences, compressed = self._by_question(texts, query_bundle.query_str)
            replaced |= {id(item): None for item in texts}
        else:
            planned = list(zip(texts, self._plan(texts), strict=True))
            for item, rate in planned:
                if rate is None:
                    replaced[id(item)] = None
                elif rate == 1 and self.token_budget is not None:
                    raw = escape_handles(item.node.get_content(MetadataMode.NONE))
                    replaced[id(item)] = ZTokenNode.of(item.node, raw)
            at_rates = [(i, r) for i, r in planned if r is not None and id(i) not in replaced]
            chosen = [item for item, _ in at_rates]
            sequences, compressed = self._resolve(at_rates)
        for item, shown in zip(chosen, self._shown(sequences), strict=True):
            replaced[id(item)] = ZTokenNode.of(item.node, shown)
        processed = [
            NodeWithScore(node=node, score=item.score)
            for item in nodes
            if (node := replaced.get(id(item), _escaped(item.node))) is not None
        ]
        ms = 1000 * (time.perf_counter() - start)
        self._count(len(chosen), compressed, ms)
        dispatcher.event(
            ZTokenLookupEvent(
                hits=len(chosen) - compressed,
                misses=compressed,
                source_tokens=sum(z.source_tokens for z in sequences),
                z_tokens=sum(len(z) for z in sequences),
                ms=ms,
            )
        )
        return processed

    def _by_question(
        self, items: list[NodeWithScore], question: str
    ) -> tuple[list[NodeWithScore], list[ZSequence], int]:
        """The nodes that fit, their Z-tokens for a question, and how many were compressed."""
        budget = None
        if self.token_budget is not None:
            order, sizes, overheads = self._measure(items)
            window = self.compressor.model.config.window
            fitting = count_fitting(sizes, overheads, self.token_budget, window=window)
            items = [items[i] for i in sorted(order[:fitting])]
            budget = self.token_budget - sum(overheads[:fitting])
        texts = [item.node.get_content(MetadataMode.NONE) for item in items]
        sequences, compressed = self.question_focus.compose(
            question, texts, self.rate, budget=budget
        )
        return items, sequences, compressed

    def _measure(self, items: list[NodeWithScore]) -> tuple[list[int], list[int], list[int]]:
        """The places of the nodes, the best first, with the tokens of their texts and the rest."""
        count = self.compressor.count_tokens
        best_first = sorted(range(len(items)), key=lambda i: -(items[i].score or 0.0))
        nodes = [items[i].node for i in best_first]
        sizes = [count(node.get_content(MetadataMode.NONE)) for node in nodes]
        overheads = [count(ZTokenNode.of(n, "").get_content(MetadataMode.LLM)) for n in nodes]
        return best_first, sizes, overheads

    def _plan(self, items: list[NodeWithScore]) -> list[float | None]:
        """The rate of each node, in their order; `None` where the budget has no room for it."""
        if self.token_budget is None:
            return [self.rate] * len(items)
        best_first, sizes, overheads = self._measure(items)
        window = self.compressor.model.config.window
        planned = plan_rates(sizes, overheads, self.token_budget, window=window)
        rates: list[float | None] = [None] * len(items)
        for i, rate in zip(best_first, planned, strict=True):
            rates[i] = rate
        return rates

    def _resolve(self, chosen: list[tuple[NodeWithScore, float]]) -> tuple[list[ZSequence], int]:
        """The Z-tokens of each node at its rate, and how many had to be compressed."""
        texts = [item.node.get_content(MetadataMode.NONE) for item, _ in chosen]
        if all(rate == 1 for _, rate in chosen):
            return self.compressor.compress(texts, 1.0), 0
        nested, compressed = self.store.resolve(self.compressor, texts)
        return [z.at(rate) for z, (_, rate) in zip(nested, chosen, strict=True)], compressed

    def _shown(self, sequences: list[ZSequence]) -> list[str]:
        """What the LLM reads in place of each text."""
        if self.show == "z-tokens":
            return [encode_handles(z, self.store.secret) for z in sequences]
        if self.show == "anchors":
            return [escape_handles(self.compressor.anchor_text(z)) for z in sequences]
        return [escape_handles(text) for text in self.compressor.decompress(sequences)]

    def _count(self, nodes: int, compressed: int, ms: float) -> None:
        with self._stats_lock:
            now = self._stats
            self._stats = PostprocessorStats(
                nodes=now.nodes + nodes,
                compressed=now.compressed + compressed,
                hits=now.hits + nodes - compressed,
                ms=now.ms + ms,
            )


def _escaped(node: BaseNode) -> BaseNode:
    """The node itself, unless what it shows the LLM would be taken for a handle."""
    if not has_handles(node.get_content(MetadataMode.LLM)):
        return node
    return ZTokenNode.of(node, escape_handles(node.get_content(MetadataMode.NONE)))
