"""LLM passes and time of answers with speculative decoding, and without.

    python benchmarks/speculation.py --data FILE.jsonl --summaries FILE.jsonl --output DIR

Both are JSON Lines files, or folders of them, whose records have a `context`; those of `--data` a
`question`, too. The tasks are `answers` from Z-tokens; `text`, the same from raw text; `quotations`
of a sentence of the context; `summaries`, written freely; `long summaries` of 100 tokens, drawn
towards the context as answers are; and `repeat`, the context word for word.
Drafts are looked up, guessed by the write head, or both. The ways take turns, so that other load
on the machine falls on all alike; prompts are read in all, and their time is part of it. `same` is
the share of answers that are equal to those without drafts, of 100; `accepted_of_3` is the share of
right tokens in guesses of three.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common import (
    Parser,
    add_model_options,
    add_records_option,
    load_compressor,
    positive,
    run_script,
    write_measured,
)
from costs.bench import seconds
from costs.corpus import draw_records, read_records
from ztok_rag.codec.compressor import ZCompressor
from ztok_rag.codec.prompts import QA_TEMPLATE
from ztok_rag.codec.reader import Prompt, ZReader
from ztok_rag.codec.speculation import BOTH, HEAD, LOOKUP, Speculate
from ztok_rag.evaluation import Row, bootstrap_ci, split_template

BATCH_SIZES = (1, 8)
LONG = 100
"""Tokens of a long summary."""

WAYS: dict[str, Speculate] = {"one by one": False, LOOKUP: "lookup", HEAD: "head", BOTH: "both"}
"""Names of the arms, and where their drafts come from."""

Work = Callable[[ZReader, Speculate], list[str]]
"""Takes a reader and where drafts come from; returns the answers of one batch."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all tasks at each batch size, and write the results."""
    options = parse(arguments)
    compressor = load_compressor(options)
    questions, summaries = (
        draw_records(read_records(path), path, compressor, limit=options.limit, seed=options.seed)
        for path in (options.data, options.summaries)
    )
    rows: list[Row] = []
    tasks = make_tasks(compressor, questions, summaries, options)
    with tqdm(total=len(tasks) * len(BATCH_SIZES), unit="task") as bar:
        for size in BATCH_SIZES:
            for task, (rate, batches) in tasks.items():
                bar.set_description(f"{task}, {size} at once")
                rows += measure(f"{task}, {size} at once", rate, batches(size), compressor, options)
                bar.update()
    note = (
        f"{len(questions)} records of {options.data} and {len(summaries)} of {options.summaries}, "
        "drawn by seed; scores are means per answer: passes of the LLM (a pass reads a batch), "
        "seconds, and the share of equal answers."
    )
    write_measured(options, rows, compressor, benchmark="speculation", note=note)


def make_tasks(
    compressor: ZCompressor,
    questions: Sequence[Mapping[str, Any]],
    summaries: Sequence[Mapping[str, Any]],
    options: argparse.Namespace,
) -> dict[str, tuple[float, Callable[[int], list[Work]]]]:
    """The rate of each task, and what makes its batches."""
    rate, limit = options.rate, options.max_new_tokens
    texts = [str(record["context"]) for record in questions]
    asked = [str(record["question"]) for record in questions]
    opening = [" ".join(text.split()[:6]) for text in texts]
    quoted = [f'Repeat the sentence that begins with "{words}" word for word.' for words in opening]
    zs = compressor.compress(texts, rate)
    others = compressor.compress([str(record["context"]) for record in summaries], rate)

    def generating(prompts: list[Prompt], **arguments: Any) -> Callable[[int], list[Work]]:
        def batches(size: int) -> list[Work]:
            return [
                lambda reader, speculate, own=prompts[at : at + size]: reader.generate(  # type: ignore[misc]
                    own,
                    speculate=speculate,
                    batch_size=size,
                    **{"max_new_tokens": limit, **arguments},
                )
                for at in range(0, len(prompts), size)
            ]

        return batches

    def repeating(size: int) -> list[Work]:
        return [
            lambda reader, speculate, own=zs[at : at + size]: reader.repeat(  # type: ignore[misc]
                own, speculate=speculate, batch_size=size
            )
            for at in range(0, len(zs), size)
        ]

    def ask(contexts: Sequence[Any], questions: Sequence[str]) -> list[Prompt]:
        prompts: list[Prompt] = []
        for context, question in zip(contexts, questions, strict=True):
            before, after = split_template(QA_TEMPLATE, question=question)
            prompts.append([before, context, after])
        return prompts

    summary = ask(others, ["Summarize the text."] * len(others))
    return {
        "answers": (rate, generating(ask(zs, asked))),
        "text": (1.0, generating(ask(texts, asked))),
        "quotations": (rate, generating(ask(zs, quoted))),
        "summaries": (rate, generating(summary, copy=False)),
        "long summaries": (
            rate,
            generating(summary, max_new_tokens=LONG, min_new_tokens=LONG, ask_first=False),
        ),
        "repeat": (rate, repeating),
    }


def measure(
    task: str,
    rate: float,
    batches: Sequence[Work],
    compressor: ZCompressor,
    options: argparse.Namespace,
) -> list[Row]:
    """Rows of passes and seconds of each way, and of how many answers are the same."""
    reader, base = compressor.reader, compressor.model.base
    passes: dict[str, list[float]] = {arm: [] for arm in WAYS}
    times: dict[str, list[float]] = {arm: [] for arm in WAYS}
    texts: dict[str, list[str]] = {arm: [] for arm in WAYS}
    guessed: Counter[tuple[int, int]] = Counter()
    batches[0](reader, True)  # a warm-up
    for number, work in enumerate(batches):
        for arm in [*WAYS, *WAYS][number % len(WAYS) :][: len(WAYS)]:
            before = reader.passes
            made: list[str] = []
            reader.guessed.clear()
            took = seconds(base, lambda s=WAYS[arm], m=made: m.extend(work(reader, s)))  # type: ignore[misc]  # noqa: B023
            texts[arm] += made
            times[arm] += [took / len(made)] * len(made)
            passes[arm] += [float(reader.passes - before)] * len(made)
            if arm == HEAD:
                guessed += reader.guessed
    one_by_one = texts["one by one"]
    tokens = [len(compressor.tokenizer(t)["input_ids"]) for t in one_by_one]

    def row(arm: str, metric: str, values: Sequence[float]) -> Row:
        interval = bootstrap_ci(values, seed=options.seed)
        low, high = np.quantile(values, [0.1, 0.9])
        return Row(
            "speculation", task, arm, rate, 0, metric, float(np.mean(values)), interval,
            len(values), p10=float(low), p90=float(high), answer_tokens=float(np.mean(tokens)),
        )  # fmt: skip

    rows = []
    for arm in WAYS:
        rows += [row(arm, "passes", passes[arm]), row(arm, "seconds_per_answer", times[arm])]
        if arm != "one by one":
            same = [100.0 * (a == b) for a, b in zip(one_by_one, texts[arm], strict=True)]
            rows.append(row(arm, "same", same))
    for length in sorted({own for own, _ in guessed}):
        shares = [
            100.0 * right / length
            for (own, right), count in guessed.items()
            if own == length
            for _ in range(count)
        ]
        rows.append(row(HEAD, f"accepted_of_{length}", shares))
    return rows


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = Parser(description="Measure speculative decoding.")
    add_records_option(parser)
    parser.add_argument(
        "--summaries", type=Path, required=True, metavar="PATH",
        help="likewise; only the contexts are used",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=positive, default=8, metavar="N", help="records of each (default: 8)"
    )
    parser.add_argument("--rate", type=float, default=4.0, metavar="R", help="default: 4")
    parser.add_argument(
        "--max-new-tokens", type=positive, default=48, metavar="N", help="default: 48"
    )
    parser.add_argument("--output", type=Path, default=None, metavar="DIR")
    add_model_options(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_script(main)
