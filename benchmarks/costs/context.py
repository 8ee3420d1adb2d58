"""Time to first token and KV cache against the length of the context."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from costs.bench import Bench, synchronize
from costs.corpus import Asked
from ztok_rag.codec.prompts import QA_TEMPLATE
from ztok_rag.evaluation import Row, bootstrap_ci, split_template
from ztok_rag.evaluation.metrics import token_f1

if TYPE_CHECKING:
    from ztok_rag.codec.reader import Prompt


def measure_context(bench: Bench, bar: tqdm[Any]) -> list[Row]:
    """Time to first token and KV cache of one long context, as raw text and at each rate.

    A prompt longer than the base LLM can read is not run; its row `readable` is 0.
    """
    rows: list[Row] = []
    shortest = bench.corpus.head(min(bench.options.lengths))
    asked = bench.corpus.asked(len(shortest), max(1, bench.options.answers))
    for length in bench.options.lengths:
        text = bench.corpus.head(length)
        for arm, rate in [("text-reader", 1.0), *(("ztok", rate) for rate in bench.rates)]:
            bar.set_postfix_str(f"{length} tokens, {arm} {rate:g}")
            rows += context_rows(bench, length, text, arm, rate, asked)
    return rows


def context_rows(
    bench: Bench,
    length: int,
    text: str,
    arm: str,
    rate: float,
    asked: Sequence[Asked],
) -> list[Row]:
    """The rows of one length and one way to give the context."""
    reader, base = bench.compressor.reader, bench.base
    sizes: dict[str, Any] = {"source_tokens": length}
    started = time.perf_counter()
    (context,) = bench.compressor.compress([text], rate)  # at rate 1, the tokens of the text
    took = 1e3 * (time.perf_counter() - started)
    if arm == "ztok":
        sizes |= {"compress_ms": took, "z_tokens": len(context)}
    prompts: list[Prompt] = []
    for question in asked:
        before, after = split_template(QA_TEMPLATE, question=question.question)
        prompts.append([before, context, after])
    limit = bench.options.max_new_tokens
    positions = [reader.count_tokens(prompt) for prompt in prompts]
    readable = max(positions) + limit <= reader.max_positions
    task, mean = f"context {length}", float(np.mean(positions))

    def make(metric: str, values: Sequence[float], **fields: Any) -> Row:
        fields = {"context_tokens": mean, **sizes, **fields}
        return bench.row(task, arm, rate, metric, values, **fields)

    rows = [make("readable", [100.0 * readable])]
    if not readable:
        return rows
    reader.measure(prompts[0])
    costs = []
    for turn in range(bench.repeats):
        synchronize(base)
        costs.append(reader.measure(prompts[turn % len(prompts)]))
    medians = {
        "prefill_ms": float(np.median([cost.prefill_ms for cost in costs])),
        "ttft_ms": float(np.median([cost.ttft_ms for cost in costs])),
        "kv_bytes": float(np.mean([cost.kv_bytes for cost in costs])),
    }
    rows.append(make("ttft_ms", [cost.ttft_ms for cost in costs], **medians))
    if bench.options.answers:
        answers = reader.generate(prompts, max_new_tokens=limit, stop=("\n",), batch_size=1)
        given = [100.0 * bool(answer.strip()) for answer in answers]
        rows.append(averaged(make("answered", given), given))
        rows[-1].answers = [answer.strip() for answer in answers]
        known = [(a, q.answers) for a, q in zip(answers, asked, strict=True) if q.answers]
        if known:
            scores = [100 * token_f1(answer, wanted) for answer, wanted in known]
            rows.append(averaged(make("f1", scores), scores))
    return rows


def averaged(row: Row, values: Sequence[float]) -> Row:
    """The row with the mean of its values, and the interval of the mean, instead of the median."""
    row.score, row.ci95 = float(np.mean(values)), bootstrap_ci(values)
    return row
