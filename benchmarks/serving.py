"""Answers per second against how many ask at once, from Z-tokens and from plain text.

    python benchmarks/serving.py --data FILE.jsonl --output DIR

The file is JSON Lines of records with `context` and `question`, or a folder of such files. Each
question is asked of one `ZTokenLLM` in one process, by `acomplete`, in `--askers` loops at once;
each asks its next question when it has the answer. Both arms answer the same questions with the
same reader, in turns. In float32 every answer must be the one that is given when it is asked alone.

`answers_per_second` is over a whole turn, its interval by bootstrap over the times between answers;
`seconds_per_answer` is what an asker waits; `answers_per_pass` how many answers a pass of the LLM
works on, in the mean; `loop_lag_ms` the longest time that the event loop was late.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common import (
    Parser,
    add_model_options,
    add_records_option,
    counts,
    load_compressor,
    positive,
    run_script,
    write_measured,
)
from costs.corpus import draw_records, read_records
from ztok_rag.cli.console import shows_bars
from ztok_rag.codec.batcher import Batcher
from ztok_rag.codec.compressor import ZCompressor
from ztok_rag.codec.prompts import QA_TEMPLATE
from ztok_rag.errors import ZtokError
from ztok_rag.evaluation import Row, bootstrap_ci
from ztok_rag.llamaindex.llm import ZTokenLLM
from ztok_rag.storage.handle import encode_handle, escape_handles
from ztok_rag.storage.store import ZStore

_TICK = 0.005  # seconds between looks at the event loop


@dataclass(frozen=True)
class Turn:
    """What came of asking all questions of one arm.

    Attributes:
        answers: in the order of the questions.
        waits: seconds that each took.
        ends: seconds from the beginning to each answer, in the order in which they came.
        passes: of the LLM.
        rows: answers that these worked on, added up.
        lag: longest time that the event loop was late, in seconds.
    """

    answers: list[str]
    waits: list[float]
    ends: list[float]
    passes: int
    rows: int
    lag: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask, and write the results."""
    options = parse(arguments)
    compressor = load_compressor(options)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, ZStore(Path(folder) / "store") as store:
        llm = ZTokenLLM(
            reader=compressor.reader, store=store, max_new_tokens=options.max_new_tokens
        )
        compressor.reader.batcher.max_rows = options.max_batch
        prompts = make_prompts(compressor, store, options)
        alone = {
            arm: [llm.complete(prompt) for prompt in tqdm(asked, arm, disable=not shows_bars())]
            for arm, (_, asked) in prompts.items()
        }
        for askers in options.askers:
            for arm, (rate, asked) in prompts.items():

                async def answer(prompt: str) -> str:
                    return str((await llm.acomplete(prompt)).text)

                turn = asyncio.run(ask(answer, asked, askers, compressor.reader.batcher))
                wanted = [response.text for response in alone[arm]]
                check(turn.answers, wanted, compressor)
                positions = np.mean([r.raw["usage"]["prompt_tokens"] for r in alone[arm]])
                rows += make_rows(turn, arm, rate, askers, wanted, float(positions), options)
    note = (
        f"{options.limit} records of {options.data}, drawn by seed; answers of at most "
        f"{options.max_new_tokens} tokens, at most {options.max_batch} in a pass."
    )
    write_measured(options, rows, compressor, benchmark="serving", note=note)


def make_prompts(
    compressor: ZCompressor, store: ZStore, options: argparse.Namespace
) -> dict[str, tuple[float, list[str]]]:
    """The rate and the prompts of each arm.

    Raises:
        DataError: there are not enough records of a middling length.
    """
    records = [r for r in read_records(options.data) if isinstance(r.get("question"), str)]
    chosen = draw_records(records, options.data, compressor, limit=options.limit, seed=options.seed)
    texts = [str(record["context"]) for record in chosen]
    zs = store.get_or_compress(compressor, texts, options.rate)
    shown = {
        "ztok": (options.rate, [encode_handle(z, store.secret) for z in zs]),
        "text-reader": (1.0, [escape_handles(text) for text in texts]),
    }
    return {
        arm: (
            rate,
            [
                QA_TEMPLATE.format(context=context, question=escape_handles(record["question"]))
                for context, record in zip(contexts, chosen, strict=True)
            ],
        )
        for arm, (rate, contexts) in shown.items()
    }


async def ask(
    answer: Callable[[str], Awaitable[str]], prompts: Sequence[str], askers: int, batcher: Batcher
) -> Turn:
    """Ask all prompts, so many at once.

    Args:
        answer: answers a prompt.
        prompts: in the order in which they are asked.
        askers: how many ask at once.
        batcher: counts the passes.
    """
    waiting = list(enumerate(prompts))[::-1]
    answers = [""] * len(prompts)
    waits = [0.0] * len(prompts)
    ends: list[float] = []
    lag = 0.0
    before = batcher.stats
    begun = time.perf_counter()

    async def one() -> None:
        while waiting:
            number, prompt = waiting.pop()
            started = time.perf_counter()
            answers[number] = await answer(prompt)
            ended = time.perf_counter()
            waits[number] = ended - started
            ends.append(ended - begun)

    async def watch() -> None:
        nonlocal lag
        while True:
            started = time.perf_counter()
            await asyncio.sleep(_TICK)
            lag = max(lag, time.perf_counter() - started - _TICK)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(one() for _ in range(askers)))
    watching.cancel()
    after = batcher.stats
    return Turn(answers, waits, ends, after.passes - before.passes, after.rows - before.rows, lag)


def check(answers: Sequence[str], wanted: Sequence[str], compressor: ZCompressor) -> None:
    """Make sure that the answers are those given alone, where rounding cannot change them.

    Raises:
        ZtokError: one is not.
    """
    other = sum(a != b for a, b in zip(answers, wanted, strict=True))
    if other and compressor.model.base.dtype == torch.float32:
        raise ZtokError(
            f"{other} of {len(answers)} answers are others than when asked alone; this is an error "
            "of the batcher, please report it."
        )


def make_rows(
    turn: Turn,
    arm: str,
    rate: float,
    askers: int,
    wanted: Sequence[str],
    positions: float | None,
    options: argparse.Namespace,
    *,
    benchmark: str = "serving",
) -> list[Row]:
    """Rows of one turn; `k` is how many asked at once."""

    def row(metric: str, score: float, interval: tuple[float, float], **more: Any) -> Row:
        return Row(
            benchmark, "askers", arm, rate, askers, metric, score, interval, len(wanted),
            context_tokens=positions, **more,
        )  # fmt: skip

    gaps = np.diff([0.0, *turn.ends]).tolist()
    low, high = bootstrap_ci(gaps, seed=options.seed)
    p10, p90 = np.quantile(turn.waits, [0.1, 0.9])
    fill = turn.rows / max(1, turn.passes)
    same = [100.0 * (a == b) for a, b in zip(turn.answers, wanted, strict=True)]
    mean = float(np.mean(turn.waits))
    waited = bootstrap_ci(turn.waits, seed=options.seed)
    return [
        row("answers_per_second", 1 / float(np.mean(gaps)), (1 / high, 1 / low)),
        row("seconds_per_answer", mean, waited, p10=float(p10), p90=float(p90)),
        row("answers_per_pass", fill, (fill, fill)),
        row("loop_lag_ms", 1000 * turn.lag, (1000 * turn.lag, 1000 * turn.lag)),
        row("same", float(np.mean(same)), bootstrap_ci(same, seed=options.seed)),
    ]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = Parser(description="Measure many askers of one process.")
    add_records_option(parser)
    parser.add_argument(
        "--askers", type=counts, default=[1, 4, 16, 64], metavar="N,M",
        help="how many ask at once, comma-separated (default: 1,4,16,64)",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=positive, default=64, metavar="N", help="questions (default: 64)"
    )
    parser.add_argument("--rate", type=float, default=4.0, metavar="R", help="default: 4")
    parser.add_argument(
        "--max-new-tokens", type=positive, default=12, metavar="N", help="default: 12"
    )
    parser.add_argument("--max-batch", type=positive, default=16, metavar="N", help="default: 16")
    parser.add_argument("--output", type=Path, default=None, metavar="DIR")
    add_model_options(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_script(main)
