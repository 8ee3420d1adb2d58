"""Time to answer through LlamaIndex, by phase."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from costs.bench import Bench, synchronize
from result_rows import PHASES
from ztok_rag.codec.base import BaseLM
from ztok_rag.evaluation import Row, sample
from ztok_rag.selection.query_aware import QueryAwareSelector

if TYPE_CHECKING:
    from llama_index.core.base.base_query_engine import BaseQueryEngine

    from ztok_rag.storage.store import ZStore


@dataclass
class Marks:
    """What happened in one query: when each step ended, the prompts, and the chunks compressed."""

    times: dict[str, float] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)
    compressed: int = 0

    def set(self, name: str) -> None:
        self.times.setdefault(name, time.perf_counter())


@contextmanager
def watching(base: BaseLM) -> Iterator[Marks]:
    """Note when retrieval ends, synthesis starts, and the first forward pass of the base ends."""
    from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
    from llama_index.core.instrumentation.event_handlers import BaseEventHandler
    from llama_index.core.instrumentation.events import BaseEvent
    from llama_index.core.instrumentation.events.llm import LLMCompletionStartEvent
    from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent
    from llama_index.core.instrumentation.events.synthesis import SynthesizeStartEvent

    from ztok_rag.llamaindex.events import ZTokenLookupEvent

    marks = Marks()

    class Handler(BaseEventHandler):
        @classmethod
        def class_name(cls) -> str:
            return "LatencyHandler"

        def handle(self, event: BaseEvent, **_: Any) -> None:
            if isinstance(event, RetrievalEndEvent):
                marks.set("retrieved")
            elif isinstance(event, SynthesizeStartEvent):
                marks.set("synthesize")
            elif isinstance(event, LLMCompletionStartEvent):
                marks.prompts.append(event.prompt)
            elif isinstance(event, ZTokenLookupEvent):
                marks.compressed += event.misses

    def passed(module: Any, *_: Any) -> None:
        # The compressor's passes come before synthesis.
        if module is base.decoder and "synthesize" in marks.times and "read" not in marks.times:
            synchronize(base)
            marks.set("read")

    handlers = get_dispatcher().event_handlers
    handler = Handler()
    handlers.append(handler)
    hook = base.decoder.register_forward_hook(passed)
    try:
        yield marks
    finally:
        hook.remove()
        handlers.remove(handler)


@dataclass
class Timed:
    """One query: milliseconds by phase, what happened in it, and the answer."""

    phases: dict[str, float]
    marks: Marks
    answer: str


def ask(engine: BaseQueryEngine, question: str, base: BaseLM) -> Timed:
    """Query an engine and time its phases.

    `postprocess` lasts from the end of retrieval to the start of synthesis. `prefill` lasts from
    there to the end of the first forward pass; it includes building and splicing the prompt.
    """
    with watching(base) as marks:
        started = time.perf_counter()
        answer = str(engine.query(question))
        ended = time.perf_counter()
    edges = [started, *(marks.times[name] for name in ("retrieved", "synthesize", "read")), ended]
    spans = dict(zip(PHASES, 1e3 * np.diff(edges), strict=True))
    phases = {f"{name}_ms": float(ms) for name, ms in spans.items()}
    return Timed({"answer_ms": 1e3 * (ended - started), **phases}, marks, answer)


Engines = dict[tuple[str, str, float], "BaseQueryEngine"]
"""Query engines by task, arm and rate."""


def measure_queries(bench: Bench, bar: tqdm[Any]) -> list[Row]:
    """Time to answer by phase: from raw text, and from Z-tokens in the store or not yet in it."""
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import TextNode

    from ztok_rag import default_embedding
    from ztok_rag.storage.store import ZStore

    chunks = bench.corpus.chunks[: bench.options.chunks]
    nodes = [TextNode(text=chunk) for chunk in chunks]
    index = VectorStoreIndex(nodes, embed_model=default_embedding())
    asked = bench.corpus.asked(bench.corpus.ends[len(chunks) - 1], 10**4)
    rows: list[Row] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        ZStore(Path(folder, "cold")) as cold,
        ZStore(Path(folder, "warm")) as warm,
    ):
        bar.set_postfix_str("compressing")
        QueryAwareSelector.over(bench.compressor, warm, default_embedding()).prepare(chunks)
        for k in bench.options.k:
            questions = [q.question for q in sample(asked, bench.repeats + 1, bench.options.seed)]
            engines = make_engines(bench, index, {"cold": cold, "warm": warm}, k)
            taken: dict[tuple[str, str, float], list[Timed]] = {way: [] for way in engines}
            for turn, question in enumerate(questions):
                for way, engine in engines.items():
                    bar.set_postfix_str(f"{k} chunks, {turn} of {bench.repeats}, {way[0]}")
                    cold.delete(chunks)
                    timed = ask(engine, question, bench.base)
                    if turn:
                        taken[way].append(timed)
            for (task, arm, rate), times in taken.items():
                rows += query_rows(bench, task, arm, rate, k, times)
    return rows


def make_engines(bench: Bench, index: Any, stores: Mapping[str, ZStore], k: int) -> Engines:
    """Engines that read `k` chunks: as raw text, and as Z-tokens of each rate from each store."""
    from ztok_rag import ZTokenLLM, ZTokenPostprocessor

    def engine(store: ZStore, postprocessors: list[Any]) -> BaseQueryEngine:
        made: BaseQueryEngine = index.as_query_engine(
            llm=ZTokenLLM(
                reader=bench.compressor.reader, store=store,
                max_new_tokens=bench.options.max_new_tokens,
                look_twice=False,  # so that what is read has the rate asked for
            ),
            node_postprocessors=postprocessors,
            similarity_top_k=k,
        )  # fmt: skip
        return made

    engines: Engines = {("query raw", "text-reader", 1.0): engine(stores["warm"], [])}
    for cache, store in stores.items():
        for rate in bench.rates:
            shown = ZTokenPostprocessor(rate=rate, compressor=bench.compressor, store=store)
            engines[f"query {cache}", "ztok", rate] = engine(store, [shown])
    return engines


def query_rows(
    bench: Bench, task: str, arm: str, rate: float, k: int, times: Sequence[Timed]
) -> list[Row]:
    """A row per phase, and one for the whole time."""
    from ztok_rag.storage.handle import count_tokens

    tokenizer = bench.compressor.tokenizer

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def ids(text: str) -> list[int]:
        return list(range(tokens(text)))

    prompts = [count_tokens(prompt, ids) for timed in times for prompt in timed.marks.prompts]
    counts = {
        "llm_calls": len(prompts) / len(times),
        "compressed": float(np.mean([timed.marks.compressed for timed in times])),
        "answer_tokens": float(np.mean([tokens(timed.answer) for timed in times])),
    }
    return [
        bench.row(
            task, arm, rate, metric, [timed.phases[metric] for timed in times], k=k,
            context_tokens=float(np.mean(prompts)), **counts,
        )
        for metric in times[0].phases
    ]  # fmt: skip
