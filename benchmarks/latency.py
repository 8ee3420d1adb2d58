"""What Z-tokens cost and save in time and bytes, on real text.

    python benchmarks/latency.py --data FILE.jsonl --output DIR

`--data` is a JSON Lines file, or a folder of them such as LongBench's, whose records have a
`context`, `text` or `document`; questions and answers beside it are used where there are any. Four
parts, each with warm-up and repeats, in turns, so that whatever else the machine does falls on all
alike: compression against the base's own forward pass; queries through LlamaIndex, cut into their
phases; first token and KV cache against the length of the context; and bytes of single chunks.
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import DynamicCache
from zstandard import ZstdCompressor

import plots
from common import Parser, count, load_compressor, names, positive, run_script
from result_rows import PHASES
from ztok_rag.codec.base import BaseLM, dtype_name
from ztok_rag.codec.compressor import MAX_RATE, ZCompressor, batches_by_size
from ztok_rag.codec.prompts import QA_TEMPLATE
from ztok_rag.errors import DataError
from ztok_rag.evaluation import (
    Row,
    bootstrap_ci,
    format_table,
    ratio_ci,
    read_jsonl,
    sample,
    split_template,
    write_results,
)
from ztok_rag.evaluation.metrics import token_f1
from ztok_rag.selection.focus import QuestionFocus, resolve_in_memory
from ztok_rag.selection.sentences import SentenceScorer

if TYPE_CHECKING:
    from llama_index.core.base.base_query_engine import BaseQueryEngine

    from ztok_rag.codec.reader import Prompt
    from ztok_rag.storage.store import ZStore

PARTS = ("compress", "query", "context", "bytes")
LENGTHS = (1000, 2000, 4000, 8000, 16000, 32000)
CHUNK_TOKENS = 256
TEXT_FIELDS = ("context", "text", "document")
LONGEST_QUESTION = 300
"""Characters; longer inputs of some tasks are documents rather than questions."""


# ----------------------------------------------------------------------------------------------
# Text


@dataclass(frozen=True)
class Asked:
    """A question, its reference answers, if known, and where the text it is about ends."""

    question: str
    answers: tuple[str, ...] = ()
    end: int = 0


@dataclass
class Corpus:
    """One long text of all records, and the same text in chunks.

    Attributes:
        offsets: character span of each token of the text.
        chunks: of at most `CHUNK_TOKENS` tokens, in order, cut before words.
        ends: character at which each chunk ends.
        questions: of the records, in their order.
    """

    text: str
    offsets: list[tuple[int, int]]
    chunks: list[str] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    questions: list[Asked] = field(default_factory=list)

    def head(self, tokens: int) -> str:
        """The first so many tokens."""
        return self.text[: self.offsets[tokens - 1][1]]

    def asked(self, end: int, number: int) -> list[Asked]:
        """Questions whose text ends before character `end`; made up where there are none."""
        found = [asked for asked in self.questions if asked.end <= end]
        if not found:
            openings = [" ".join(chunk.split()[:12]) for chunk in self.chunks[:number]]
            found = [Asked(f"What is said about this: {opening}?") for opening in openings]
        return [found[i % len(found)] for i in range(number)]


def read_records(path: Path) -> list[dict[str, Any]]:
    """Records of a file, or of all `*.jsonl` of a folder.

    Raises:
        DataError: there are none, or one has no text.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} holds no *.jsonl file; give --data a file, or a folder of them.")

    def check(record: dict[str, Any]) -> None:
        if _text_of(record) is None:
            raise ValueError(f"it has no text in a field {', '.join(map(repr, TEXT_FIELDS))}")

    return [record for file in files for record in read_jsonl(file, {}, check)]


def _text_of(record: Mapping[str, Any]) -> str | None:
    texts = (record.get(name) for name in TEXT_FIELDS)
    return next((t for t in texts if isinstance(t, str) and t.strip()), None)


def _question_of(record: Mapping[str, Any], end: int) -> Asked | None:
    question = record.get("question") or record.get("input")
    if not isinstance(question, str) or not 0 < len(question.strip()) <= LONGEST_QUESTION:
        return None
    answers = record.get("answers")
    known = answers if isinstance(answers, list) else []
    return Asked(question.strip(), tuple(a for a in known if isinstance(a, str)), end)


def make_corpus(records: Sequence[Mapping[str, Any]], tokenizer: Any, tokens: int) -> Corpus:
    """The distinct texts of records, in their order, until there are enough tokens.

    Raises:
        DataError: they are too short together.
    """
    parts: list[str] = []
    ends: dict[str, int] = {}
    questions: list[Asked] = []
    length = characters = 0
    for record in records:
        text = str(_text_of(record)).strip()
        if text not in ends:
            if length >= tokens:
                continue
            parts.append(text)
            length += len(_encode(tokenizer, text))
            characters += len(text) + 2
            ends[text] = characters - 2
        if asked := _question_of(record, ends[text]):
            questions.append(asked)
    if length < tokens:
        raise DataError(
            f"--data holds {length} tokens of text and {tokens} are needed; give more text, or "
            "smaller --lengths or --chunks."
        )
    text = "\n\n".join(parts)
    corpus = Corpus(text, _encode(tokenizer, text), questions=questions)
    _cut(corpus, tokenizer)
    return corpus


def _encode(tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """The character span of each token."""
    spans: list[tuple[int, int]] = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )["offset_mapping"]
    return spans


def _cut(corpus: Corpus, tokenizer: Any) -> None:
    """Fill in the chunks; what is left at the end and shorter than one is not used."""
    at = 0
    while at + CHUNK_TOKENS < len(corpus.offsets):
        end = at + CHUNK_TOKENS
        while end > at + CHUNK_TOKENS // 2:
            start, stop = corpus.offsets[at][0], corpus.offsets[end][0]
            chunk = corpus.text[start:stop]
            between_words = corpus.text[stop].isspace() or corpus.text[stop - 1].isspace()
            # Cut from its surroundings, a text may take more tokens.
            if between_words and len(_encode(tokenizer, chunk)) <= CHUNK_TOKENS:
                break
            end -= 1
        corpus.chunks.append(chunk)
        corpus.ends.append(stop)
        at = end


# ----------------------------------------------------------------------------------------------
# Measuring


@dataclass(frozen=True)
class Bench:
    """What every part needs."""

    compressor: ZCompressor
    corpus: Corpus
    rates: tuple[float, ...]
    repeats: int
    options: argparse.Namespace

    @property
    def base(self) -> BaseLM:
        return self.compressor.model.base

    @property
    def raw(self) -> str | None:
        """The adapter that reads raw text; `None`, the plain base, where none was trained to."""
        return "text" if "text" in self.compressor.reader.adapters else None

    @property
    def raw_arm(self) -> str:
        return "text-reader" if self.raw else "text"

    def row(
        self,
        task: str,
        arm: str,
        rate: float,
        metric: str,
        values: Sequence[float],
        k: int = 0,
        **fields: Any,
    ) -> Row:
        """The median of measurements, with its interval, p10 and p90."""
        low, high = np.quantile(values, [0.1, 0.9])
        extra = {"p10": float(low), "p90": float(high), **fields.pop("extra", {})}
        interval = median_ci(values, self.options.seed)
        return Row(
            "latency", task, arm, rate, k, metric, float(np.median(values)), interval,
            len(values), extra=extra, **fields,
        )  # fmt: skip


def median_ci(values: Sequence[float], seed: int) -> tuple[float, float]:
    """95% percentile bootstrap interval of the median."""
    array = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(array), size=(2000, len(array)))
    low, high = np.quantile(np.median(array[drawn], axis=1), [0.025, 0.975])
    return float(low), float(high)


def seconds(base: BaseLM, work: Callable[[], Any]) -> float:
    """Wall-clock seconds of some work, the device's included."""
    _synchronize(base)
    started = time.perf_counter()
    work()
    _synchronize(base)
    return time.perf_counter() - started


def _synchronize(base: BaseLM) -> None:
    if base.device.type == "cuda":
        torch.cuda.synchronize(base.device)


def in_turns(
    base: BaseLM, works: Mapping[str, Callable[[], Any]], repeats: int, bar: tqdm[Any]
) -> dict[str, list[float]]:
    """Seconds of each work; all take turns, and the first turn warms up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            bar.set_postfix_str(f"{name}, {turn} of {repeats}")
            took = seconds(base, work)
            if turn:
                times[name].append(took)
    return times


# ----------------------------------------------------------------------------------------------
# Compression


def measure_compression(bench: Bench, bar: tqdm[Any]) -> list[Row]:
    """Source tokens per second of compression, and of the plain base over the same batches."""
    base, compressor = bench.base, bench.compressor
    texts = bench.corpus.chunks[: bench.options.windows]
    batch_tokens = bench.options.batch_tokens
    ids: list[list[int]] = compressor.tokenizer(texts, add_special_tokens=False)["input_ids"]
    batches = [
        padded([ids[i] for i in batch], base.device)
        for batch in batches_by_size([len(row) for row in ids], batch_tokens)
    ]
    works: dict[str, Callable[[], Any]] = {
        "forward": lambda: run_base(base, batches, prefill=False),
        "prefill": lambda: run_base(base, batches, prefill=True),
    }
    for rate in bench.rates:
        works[f"rate {rate:g}"] = partial(
            compressor.compress, texts, rate, batch_tokens=batch_tokens
        )
    works["all rates"] = partial(compressor.compress_nested, texts, batch_tokens=batch_tokens)
    times = in_turns(base, works, bench.repeats, bar)
    tokens = sum(map(len, ids))
    extra = {"windows": len(texts), "source_tokens": tokens, "batch_tokens": batch_tokens}
    rows = []
    for name, taken in times.items():
        plain = name in ("forward", "prefill")
        arm, rate = ("base" if plain else "ztok-store"), 1.0
        if name.startswith("rate "):
            arm, rate = "ztok", float(name.removeprefix("rate "))
        metric = f"{name if plain else 'compress'}_tokens_per_second"
        rates = [tokens / t for t in taken]
        rows.append(bench.row("compress", arm, rate, metric, rates, extra=extra))
        for other in ("forward", "prefill") if not plain else ():
            shares = [100 * b / a for a, b in zip(taken, times[other], strict=True)]
            rows.append(bench.row("compress", arm, rate, f"share_of_{other}", shares, extra=extra))
    return rows


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, list[int]]:
    """Token ids `[batch, n]`, padded on the right, and the length of each row."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
    return ids.to(device), [len(row) for row in rows]


@torch.inference_mode()
def run_base(
    base: BaseLM, batches: Sequence[tuple[torch.Tensor, list[int]]], *, prefill: bool
) -> None:
    """The plain base's pass over batches; a prefill keeps its cache and predicts a token."""
    with base.adapter(None):
        for ids, lengths in batches:
            ends = torch.tensor(lengths, device=ids.device)
            mask = torch.arange(ids.shape[1], device=ids.device)[None] < ends[:, None]
            cache = DynamicCache(config=base.model.config) if prefill else None
            hidden = base.decoder(
                input_ids=ids, attention_mask=mask.long(), past_key_values=cache, use_cache=prefill
            ).last_hidden_state
            if prefill:
                base.head(hidden[torch.arange(len(ids), device=ids.device), ends - 1])


# ----------------------------------------------------------------------------------------------
# Queries


@dataclass
class Marks:
    """When the steps of one query were reached, the prompts sent, and the chunks compressed."""

    times: dict[str, float] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)
    compressed: int = 0

    def set(self, name: str) -> None:
        self.times.setdefault(name, time.perf_counter())


@contextmanager
def watching(base: BaseLM) -> Iterator[Marks]:
    """Notes when retrieval ends, synthesis starts and the base's first pass ends."""
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
        # The compressor's short decoder shares the hooks of the whole one.
        if module is base.decoder and "read" not in marks.times:
            _synchronize(base)
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
    """One query's milliseconds by phase, what happened in it, and the answer."""

    phases: dict[str, float]
    marks: Marks
    answer: str


def ask(engine: BaseQueryEngine, question: str, base: BaseLM) -> Timed:
    """Query an engine.

    `postprocess` ends where synthesis starts; `prefill`, from there to the end of the base's first
    pass, includes building and splicing the prompt.
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
"""By task, arm and rate."""


def measure_queries(bench: Bench, bar: tqdm[Any]) -> list[Row]:
    """Time to answer by phase: raw text, and Z-tokens that are in the store or are not."""
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
        QuestionFocus.over(bench.compressor, warm, default_embedding()).prepare(chunks)
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
    """Query engines that read `k` chunks: raw text, and at each rate from each of the stores."""
    from ztok_rag import ZTokenLLM, ZTokenPostprocessor

    def engine(store: ZStore, adapter: str | None, postprocessors: list[Any]) -> BaseQueryEngine:
        made: BaseQueryEngine = index.as_query_engine(
            llm=ZTokenLLM(
                reader=bench.compressor.reader, store=store, adapter=adapter,
                max_new_tokens=bench.options.max_new_tokens,
            ),
            node_postprocessors=postprocessors,
            similarity_top_k=k,
        )  # fmt: skip
        return made

    engines: Engines = {("query raw", bench.raw_arm, 1.0): engine(stores["warm"], bench.raw, [])}
    for cache, store in stores.items():
        for rate in bench.rates:
            shown = ZTokenPostprocessor(rate=rate, compressor=bench.compressor, store=store)
            engines[f"query {cache}", "ztok", rate] = engine(store, "read", [shown])
    return engines


def query_rows(
    bench: Bench, task: str, arm: str, rate: float, k: int, times: Sequence[Timed]
) -> list[Row]:
    """A row per phase, and one of them all."""
    from ztok_rag.storage.handle import count_tokens

    tokenizer = bench.compressor.tokenizer

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def ids(text: str) -> list[int]:
        return list(range(tokens(text)))

    prompts = [count_tokens(prompt, ids) for timed in times for prompt in timed.marks.prompts]
    extra = {
        "llm_calls": len(prompts) / len(times),
        "compressed": float(np.mean([timed.marks.compressed for timed in times])),
        "answer_tokens": float(np.mean([tokens(timed.answer) for timed in times])),
    }
    return [
        bench.row(
            task, arm, rate, metric, [timed.phases[metric] for timed in times], k=k,
            context_tokens=float(np.mean(prompts)), extra=extra,
        )
        for metric in times[0].phases
    ]  # fmt: skip


# ----------------------------------------------------------------------------------------------
# Context length


def measure_context(bench: Bench, bar: tqdm[Any]) -> list[Row]:
    """First token and KV cache of one long context, as raw text and at each rate.

    A prompt that the base cannot read is not run, and its row says so.
    """
    rows: list[Row] = []
    shortest = bench.corpus.head(min(bench.options.lengths))
    asked = bench.corpus.asked(len(shortest), max(1, bench.options.answers))
    for length in bench.options.lengths:
        text = bench.corpus.head(length)
        ways: list[tuple[str, float, str | None]] = [(bench.raw_arm, 1.0, bench.raw)]
        ways += [("ztok", rate, "read") for rate in bench.rates]
        for arm, rate, adapter in ways:
            bar.set_postfix_str(f"{length} tokens, {arm} {rate:g}")
            rows += context_rows(bench, length, text, arm, rate, adapter, asked)
    return rows


def context_rows(
    bench: Bench,
    length: int,
    text: str,
    arm: str,
    rate: float,
    adapter: str | None,
    asked: Sequence[Asked],
) -> list[Row]:
    """The rows of one length and one way to read it."""
    reader, base = bench.compressor.reader, bench.base
    extra: dict[str, Any] = {"source_tokens": length}
    context: Any = text
    if arm == "ztok":
        started = time.perf_counter()
        (context,) = bench.compressor.compress([text], rate)
        took = 1e3 * (time.perf_counter() - started)
        extra |= {"compress_ms": took, "z_tokens": len(context)}
    prompts: list[Prompt] = []
    for question in asked:
        before, after = split_template(QA_TEMPLATE, question=question.question)
        prompts.append([before, context, after])
    limit = bench.options.max_new_tokens
    positions = [reader.count_tokens(prompt) for prompt in prompts]
    readable = max(positions) + limit <= reader.max_positions
    task, mean = f"context {length}", float(np.mean(positions))

    def make(metric: str, values: Sequence[float], **fields: Any) -> Row:
        fields = {"context_tokens": mean, "extra": extra, **fields}
        return bench.row(task, arm, rate, metric, values, **fields)

    rows = [make("readable", [100.0 * readable])]
    if not readable:
        return rows
    reader.measure(prompts[0], adapter=adapter)
    costs = []
    for turn in range(bench.repeats):
        _synchronize(base)
        costs.append(reader.measure(prompts[turn % len(prompts)], adapter=adapter))
    medians = {
        "prefill_ms": float(np.median([cost.prefill_ms for cost in costs])),
        "ttft_ms": float(np.median([cost.ttft_ms for cost in costs])),
        "kv_bytes": float(np.mean([cost.kv_bytes for cost in costs])),
    }
    rows.append(make("ttft_ms", [cost.ttft_ms for cost in costs], **medians))
    if bench.options.answers:
        answers = reader.generate(
            prompts, max_new_tokens=limit, adapter=adapter, stop=("\n",), batch_size=1
        )
        given = [100.0 * bool(answer.strip()) for answer in answers]
        rows.append(averaged(make("answered", given), given))
        rows[-1].extra["answers"] = [answer.strip() for answer in answers]
        known = [(a, q.answers) for a, q in zip(answers, asked, strict=True) if q.answers]
        if known:
            scores = [100 * token_f1(answer, wanted) for answer, wanted in known]
            rows.append(averaged(make("f1", scores), scores))
    return rows


def averaged(row: Row, values: Sequence[float]) -> Row:
    """The row with the mean of its values in place of their median."""
    row.score, row.ci95 = float(np.mean(values)), bootstrap_ci(values)
    return row


# ----------------------------------------------------------------------------------------------
# Bytes


def measure_bytes(bench: Bench, bar: tqdm[Any]) -> list[Row]:
    """Bytes per source token of single chunks, stored in every way."""
    base, chunks = bench.base, bench.corpus.chunks[: bench.options.chunks]
    tokens = [bench.compressor.count_tokens(chunk) for chunk in chunks]
    raw = [chunk.encode("utf-8", "surrogatepass") for chunk in chunks]
    zstd = ZstdCompressor(level=19)
    half = torch.finfo(torch.float16).bits // 8
    kv = base.kv_bytes_per_position // base.dtype.itemsize * half
    sizes: dict[tuple[str, float], list[int]] = {
        ("text", 1.0): [len(data) for data in raw],
        ("gzip", 1.0): [len(gzip.compress(data, 9)) for data in raw],
        ("zstd", 1.0): [len(zstd.compress(data)) for data in raw],
        ("embedding-fp16", 1.0): [n * base.hidden_size * half for n in tokens],
        ("kv-cache-fp16", 1.0): [n * kv for n in tokens],
    }
    scorer = SentenceScorer(bench.compressor.tokenizer)
    focus = QuestionFocus(bench.compressor, scorer, resolve_in_memory(bench.compressor))
    focus.prepare(chunks)
    sizes["ztok-store", 1.0] = [focus.stored_bytes([chunk]) for chunk in chunks]
    for rate in bench.rates:
        bar.set_postfix_str(f"rate {rate:g}")
        zs = bench.compressor.compress(chunks, rate, batch_tokens=bench.options.batch_tokens)
        sizes["ztok", rate] = [len(z.to_bytes()) for z in zs]
    rows = []
    for (arm, rate), stored in sizes.items():
        values = [size / n for size, n in zip(stored, tokens, strict=True)]
        row = bench.row("bytes", arm, rate, "bytes_per_source_token", values)
        row.score = row.bytes_per_source_token = sum(stored) / sum(tokens)
        row.ci95 = ratio_ci(stored, tokens, bench.options.seed)
        rows.append(row)
    return rows


# ----------------------------------------------------------------------------------------------
# Running


MEASURE: Mapping[str, Callable[[Bench, tqdm[Any]], list[Row]]] = {
    "compress": measure_compression,
    "query": measure_queries,
    "context": measure_context,
    "bytes": measure_bytes,
}
DRAW: Mapping[str, Callable[[Sequence[dict[str, Any]], Path], Path]] = {
    "compress": plots.draw_throughput,
    "query": plots.draw_queries,
    "context": plots.draw_context,
    "bytes": plots.draw_bytes,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the parts asked for, and write results and pictures."""
    options = parse(arguments)
    records = read_records(options.data)
    records = [records[i] for i in np.random.default_rng(options.seed).permutation(len(records))]
    compressor = load_compressor(options)
    needed = max(
        max(options.lengths) if "context" in options.parts else 0,
        CHUNK_TOKENS * (max(options.chunks, options.windows) + 1),
    )
    corpus = make_corpus(records, compressor.tokenizer, needed)
    rates = tuple(dict.fromkeys(options.rates))
    bench = Bench(compressor, corpus, rates, options.repeats, options)
    output = options.output or Path("results") / "latency"
    note = (
        f"{len(corpus.offsets)} tokens of {options.data}, drawn by seed; scores are medians of "
        f"{options.repeats} repeats after a warm-up, intervals those of the median, p10 and p90 "
        "beside them; ms, tokens per second, or bytes, as the metric says."
    )
    rows: list[Row] = []
    with tqdm(total=len(options.parts), unit="part") as bar:
        for part in options.parts:
            bar.set_description(part)
            rows += MEASURE[part](bench, bar)
            bar.update()
            results = write_results(
                output,
                rows,
                seed=options.seed,
                checkpoint=str(options.checkpoint or "default"),
                device=str(bench.base.device),
                fingerprint=compressor.fingerprint,
                benchmark="latency",
                note=note,
                dtype=dtype_name(bench.base.dtype),
                threads=torch.get_num_threads(),
            )
            own = [row for row in results["rows"] if row["task"].split()[0] == part]
            DRAW[part](own, output / f"{part}.png")
    print(format_table(rows))
    print(f"{note}\nWritten: {output}/results.json, {', '.join(f'{p}.png' for p in options.parts)}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked."""
    parser = Parser(description="Measure time and bytes of Z-tokens and of raw text.")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="PATH",
        help="JSON Lines of records with context, text or document, or a folder of such files",
    )  # fmt: skip
    parser.add_argument(
        "--parts", type=names, default=list(PARTS), metavar="A,B",
        help=f"of {', '.join(PARTS)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--rates", type=rates, default=[4.0, 8.0], metavar="R,S", help="default: 4,8"
    )
    parser.add_argument(
        "--lengths", type=whole_numbers, default=list(LENGTHS), metavar="N,M",
        help="source tokens of context; 8k is 8000 (default: 1k,2k,4k,8k,16k,32k)",
    )  # fmt: skip
    parser.add_argument(
        "--k", type=whole_numbers, default=[1, 5, 10, 20], metavar="N,M",
        help="chunks per query (default: 1,5,10,20)",
    )  # fmt: skip
    parser.add_argument("--repeats", type=positive, default=5, metavar="N", help="default: 5")
    parser.add_argument(
        "--windows", type=positive, default=32, metavar="N",
        help="windows of 256 tokens in one pass of compression (default: 32)",
    )  # fmt: skip
    parser.add_argument(
        "--chunks", type=positive, default=64, metavar="N",
        help="chunks that are indexed, and stored (default: 64)",
    )  # fmt: skip
    parser.add_argument(
        "--answers", type=count, default=3, metavar="N",
        help="questions answered at each context length (default: 3)",
    )  # fmt: skip
    parser.add_argument(
        "--max-new-tokens", type=positive, default=32, metavar="N", help="length of an answer"
    )
    parser.add_argument(
        "--batch-tokens", type=positive, default=4096, metavar="N",
        help="padded tokens per pass, of compressor and base alike (default: 4096)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=None, metavar="DIR")
    parser.add_argument("--checkpoint", default=None, metavar="DIR", help="default: the shipped")
    parser.add_argument("--base", default=None, metavar="ID", help="base LLM, by id or folder")
    parser.add_argument("--device", default=None, help="default: cuda if there is one, else cpu")
    parser.add_argument("--seed", type=count, default=0, help="default: 0")
    options = parser.parse_args(arguments)
    if unknown := [part for part in options.parts if part not in PARTS]:
        raise DataError(f"unknown part {unknown[0]!r}; the parts are {', '.join(PARTS)}.")
    if "query" in options.parts and max(options.k) > options.chunks:
        raise DataError(f"--k {max(options.k)} needs at least as many --chunks.")
    return options


def whole_numbers(text: str) -> list[int]:
    """Comma-separated whole numbers of at least 1, `8k` for 8000, as an argument type."""
    return [
        positive(part.removesuffix("k")) * (1000 if part.endswith("k") else 1)
        for part in names(text)
    ]


def rates(text: str) -> list[float]:
    """Comma-separated rates, as an argument type."""
    try:
        values = [float(part) for part in names(text)]
    except ValueError:
        values = []
    if not values or not all(1 < value <= MAX_RATE for value in values):
        raise argparse.ArgumentTypeError(f"rates are numbers above 1, to {MAX_RATE:g}")
    return values


if __name__ == "__main__":
    run_script(main)
