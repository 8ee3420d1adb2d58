"""What the LLM writes in Z-space, beside what it writes token by token.

    python benchmarks/writing.py --data FILE.jsonl,FILE.jsonl --summaries FILE.jsonl --output DIR

`--data` are JSON Lines of `{context}` or `{text}`: the plain base goes on from the first tokens of
each. `--summaries` have a `context` and `answers`: the reader summarizes the context, which it
reads as Z-tokens. Ways are token by token; in Z-space with several bounds of confidence; with what
was written read back as Z-tokens; and drawn at a temperature, not greedy. The ways take turns on
each prompt. Scores are means over prompts: passes of the LLM, seconds, tokens, tokens of a pass,
ROUGE-L with the reference, and the perplexity of all that was written, under the plain base with
the prompt as text.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common import (
    Parser,
    add_model_options,
    load_compressor,
    names,
    positive,
    run_script,
    write_measured,
)
from costs.bench import seconds
from costs.corpus import draw_records, read_records
from ztok_rag.codec.compressor import ZCompressor
from ztok_rag.codec.prompts import QA_TEMPLATE
from ztok_rag.codec.reader import Prompt
from ztok_rag.codec.sequence import ZSequence
from ztok_rag.codec.writing import ZGenerator
from ztok_rag.errors import DataError
from ztok_rag.evaluation import Row, bootstrap_ci, split_template
from ztok_rag.evaluation.datasets import short_names
from ztok_rag.evaluation.metrics import require_bench, rouge_l
from ztok_rag.evaluation.writing import base_nats

PROMPT_TOKENS = 48
"""First tokens of a text, from which the LLM goes on."""

TEMPERATURE = 0.8

WAYS: dict[str, dict[str, Any]] = {
    "token by token": {"confidence": 1.0},
    "confidence 0.9": {"confidence": 0.9},
    "confidence 0.7": {"confidence": 0.7},
    "confidence 0.5": {"confidence": 0.5},
    "confidence 0.3": {"confidence": 0.3},
    "confidence 0.5, read back as Z-tokens but the last": {"confidence": 0.5, "read_as": "both"},
    "confidence 0.5, read back as Z-tokens": {"confidence": 0.5, "read_as": "z"},
    "token by token, drawn": {"confidence": 1.0, "temperature": TEMPERATURE},
    "confidence 0.5, drawn": {"confidence": 0.5, "temperature": TEMPERATURE},
}


@dataclass(frozen=True)
class Job:
    """Something to write.

    Attributes:
        prompt: what is read.
        text: the same as text, for the plain base.
        adapter: of the LLM that writes.
        reference: what should be written; empty without.
    """

    prompt: Prompt
    text: str
    adapter: str | None
    reference: str = ""


@dataclass
class Written:
    """What one way wrote of a task: a value of each prompt."""

    passes: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    nats: list[float] = field(default_factory=list)
    rouge_l: list[float] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write by all ways, score, and write the results."""
    options = parse(arguments)
    if options.summaries:
        require_bench()
    compressor = load_compressor(options)
    tasks = make_tasks(compressor, options)
    generator = ZGenerator(compressor.model)
    rows: list[Row] = []
    with tqdm(total=sum(map(len, tasks.values())) * len(WAYS), unit="text") as bar:
        for task, jobs in tasks.items():
            bar.set_description(task)
            rows += measure(task, jobs, generator, compressor, options, bar)
    note = (
        f"{options.limit} prompts of each task, drawn by seed, of {PROMPT_TOKENS} tokens where the "
        f"plain base goes on from a text; at most {options.max_new_tokens} tokens are written."
    )
    write_measured(options, rows, compressor, benchmark="writing", note=note)


def make_tasks(compressor: ZCompressor, options: argparse.Namespace) -> dict[str, list[Job]]:
    """What is written, by the name of the task."""
    tasks = {}
    paths = [Path(name) for name in options.data]
    for path, name in zip(paths, short_names(paths), strict=True):
        texts = [r.get("context") or r.get("text") for r in read_records(path)]
        texts = list(dict.fromkeys(text for text in texts if text))
        jobs = []
        for number in np.random.default_rng(options.seed).permutation(len(texts)):
            (tokens,) = compressor.tokenize([texts[number]])
            if len(tokens.ids) > PROMPT_TOKENS and len(jobs) < options.limit:
                opening = texts[number][: int(tokens.starts[PROMPT_TOKENS])]
                jobs.append(Job(opening, opening, None))
        tasks[f"{name}, continued"] = jobs
    if options.summaries:
        records = draw_records(
            read_records(options.summaries), options.summaries, compressor,
            limit=options.limit, seed=options.seed,
        )  # fmt: skip
        tasks["summaries"] = [summary_job(r, compressor, options.rate) for r in records]
    for task, jobs in tasks.items():
        if len(jobs) < options.limit:
            raise DataError(
                f"{task}: there are {len(jobs)} texts of a fitting length, and --limit is "
                f"{options.limit}; give more, or a smaller --limit."
            )
    return tasks


def summary_job(record: Mapping[str, Any], compressor: ZCompressor, rate: float) -> Job:
    """The summary of one record."""
    before, after = split_template(QA_TEMPLATE, question="Summarize the text.")
    (z,) = compressor.compress([record["context"]], rate)
    text = f"{before}{record['context']}{after}"
    return Job([before, z, after], text, "read", record["answers"][0])


def measure(
    task: str,
    jobs: Sequence[Job],
    generator: ZGenerator,
    compressor: ZCompressor,
    options: argparse.Namespace,
    bar: tqdm[Any],
) -> list[Row]:
    """Rows of all ways on one task."""
    found = {way: Written() for way in WAYS}
    generator.generate(jobs[0].prompt, max_new_tokens=4, adapter=jobs[0].adapter)  # a warm-up
    for number, job in enumerate(jobs):
        at = number % len(WAYS)
        for way in [*WAYS, *WAYS][at : at + len(WAYS)]:
            made: list[ZSequence] = []

            def work(job: Job = job, way: str = way, made: list[ZSequence] = made) -> None:
                settings = {"adapter": job.adapter, "seed": options.seed, **WAYS[way]}
                limit = options.max_new_tokens
                made.append(generator.generate(job.prompt, max_new_tokens=limit, **settings))

            before = generator.passes
            took = seconds(compressor.model.base, work)
            own, z = found[way], made[-1]
            own.passes.append(float(generator.passes - before))
            own.seconds.append(took)
            own.tokens.append(float(z.source_tokens))
            own.nats.append(float(base_nats(compressor, z.ids, job.text).sum()))
            if job.reference:
                own.rouge_l.append(100 * rouge_l(generator.text(z), [job.reference]))
            bar.update()
    rows = []
    for way, own in found.items():
        ratios = np.array(own.tokens) / np.array(own.passes)
        metrics = {
            "passes": own.passes,
            "seconds": own.seconds,
            "tokens": own.tokens,
            "tokens_per_pass": ratios.tolist(),
        }
        if own.rouge_l:
            metrics["rouge_l"] = own.rouge_l
        arm = "text-space" if WAYS[way]["confidence"] == 1 else "z-space"
        for metric, values in metrics.items():
            rows.append(
                Row(
                    "writing", task, f"{arm}: {way}", None, 0, metric, float(np.mean(values)),
                    bootstrap_ci(values, seed=options.seed), len(values), what=way,
                )
            )  # fmt: skip
        rows.append(perplexity_row(task, f"{arm}: {way}", way, own, options.seed))
    return rows


def perplexity_row(task: str, arm: str, way: str, own: Written, seed: int) -> Row:
    """Of all tokens of a way together; the interval draws prompts."""
    nats, tokens = np.array(own.nats), np.array(own.tokens)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(nats), (2000, len(nats)))
    spread = np.exp(nats[drawn].sum(1) / tokens[drawn].sum(1))
    low, high = np.quantile(spread, [0.025, 0.975])
    value = math.exp(nats.sum() / tokens.sum())
    interval = float(low), float(high)
    return Row("writing", task, arm, None, 0, "perplexity", value, interval, len(nats), what=way)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = Parser(description="Measure writing in Z-space.")
    parser.add_argument(
        "--data", type=names, required=True, metavar="A,B",
        help="JSON Lines of texts or of records with a context, comma-separated",
    )  # fmt: skip
    parser.add_argument(
        "--summaries", type=Path, default=None, metavar="PATH",
        help="JSON Lines of contexts, with a summary as answer",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=positive, default=8, metavar="N", help="texts of each (default: 8)"
    )
    parser.add_argument("--rate", type=float, default=4.0, metavar="R", help="default: 4")
    parser.add_argument(
        "--max-new-tokens", type=positive, default=64, metavar="N", help="default: 64"
    )
    parser.add_argument("--output", type=Path, default=None, metavar="DIR")
    add_model_options(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_script(main)
