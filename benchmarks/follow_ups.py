"""Which texts the follow-up questions of a chat find.

    python benchmarks/follow_ups.py --data FILE.jsonl --output DIR

LlamaIndex's chat engines have an LLM rewrite a follow-up question, and retrieve by what it writes.
Records have `context`, `question`, `answers` and an `id` that ends in the number of the turn, as in
DoQA: those alike before it are one dialogue. Each question that is not a dialogue's first is asked
after the turns before it, and so is the first question of another dialogue, drawn by seed. Scores
are percentages of questions whose own context is among the `k` that are found, of all contexts.

- `question`: the question as it is;
- `reader`: what the trained reader writes when it is asked to rewrite it;
- `follow-up`: what `ZTokenLLM` makes of it.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.chat_engine.condense_plus_context import DEFAULT_CONDENSE_PROMPT_TEMPLATE
from numpy.typing import NDArray
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
from embed import embed_queries, embed_texts
from ztok_rag.cli.console import shows_bars
from ztok_rag.codec.compressor import ZCompressor
from ztok_rag.errors import DataError
from ztok_rag.evaluation import QUESTION_FIELDS, Row, bootstrap_ci, check_question
from ztok_rag.jsonl import read_jsonl
from ztok_rag.llamaindex.llm import ZTokenLLM

ARMS = ("question", "reader", "follow-up")
FOLLOW_UP, OTHER = "goes on", "another subject"
KS = (1, 2, 5)
LONGEST = 64
"""Tokens that the reader may write."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A question and the turns before it.

    Attributes:
        task: whether it goes on from them.
        history: the records before.
        record: of the question.
    """

    task: str
    history: list[Record]
    record: Record

    @property
    def prompt(self) -> str:
        """What LlamaIndex asks an LLM to rewrite."""
        turns = [f"user: {r['question']}\nassistant: {r['answers'][0]}" for r in self.history]
        return DEFAULT_CONDENSE_PROMPT_TEMPLATE.format(
            chat_history="\n".join(turns), question=self.record["question"]
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Ask all questions in each way, and write the results."""
    options = parse(arguments)
    records = read_jsonl(options.data, {**QUESTION_FIELDS, "id": str}, check_question)
    contexts = list(dict.fromkeys(r["context"] for r in records))
    asked = choose(records, options.limit, options.seed)
    compressor = load_compressor(options)
    vectors = embed_texts(contexts)
    own = np.array([contexts.index(a.record["context"]) for a in asked])
    rows = []
    for arm in options.arms:
        texts = [ask(compressor, arm, a) for a in tqdm(asked, arm, disable=not shows_bars())]
        order = np.argsort(-(embed_queries(texts) @ vectors.T), axis=1, kind="stable")
        rows += score(arm, asked, order == own[:, None], options.seed)
    note = (
        f"{len(asked) // 2} follow-up questions of {options.data}, and as many of another subject "
        f"after the same turns, with the answers of the file; {len(contexts)} contexts by "
        "all-MiniLM-L6-v2. Percentages of questions whose context is found."
    )
    write_measured(options, rows, compressor, benchmark="follow_ups", note=note)


def choose(records: Sequence[Record], limit: int, seed: int) -> list[Asked]:
    """Follow-up questions, drawn by seed, then one of another subject in place of each.

    Raises:
        DataError: there are no two dialogues, or none of several turns.
    """
    dialogues: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        dialogues[record["id"].rpartition("-")[0]].append(record)
    turns = [(own[:n], own[n]) for own in dialogues.values() for n in range(1, len(own))]
    firsts = [own[0] for own in dialogues.values()]
    if not turns or len({r["context"] for r in firsts}) < 2:
        raise DataError(
            "there are no dialogues of several turns on several contexts; the id of a record is "
            "its dialogue's name, -, and the number of its turn."
        )
    random = np.random.default_rng(seed)
    drawn = [turns[i] for i in random.permutation(len(turns))[:limit]]
    others = []
    for history, record in drawn:
        different = [r for r in firsts if r["context"] != record["context"]]
        others.append(Asked(OTHER, [*history, record], different[random.integers(len(different))]))
    return [Asked(FOLLOW_UP, *turn) for turn in drawn] + others


def ask(compressor: ZCompressor, arm: str, asked: Asked) -> str:
    """What an arm retrieves by."""
    if arm == "question":
        return str(asked.record["question"])
    if arm == "reader":
        (text,) = compressor.reader.generate([asked.prompt], max_new_tokens=LONGEST)
        return text.strip()
    return ZTokenLLM(reader=compressor.reader).complete(asked.prompt).text


def score(arm: str, asked: Sequence[Asked], is_own: NDArray[np.bool_], seed: int) -> list[Row]:
    """How often an arm finds the right context.

    Args:
        arm: its name.
        asked: the questions.
        is_own: `[questions, contexts]`, whether each that is found is right, the nearest first.
        seed: of the intervals.
    """
    rows = []
    for task in (FOLLOW_UP, OTHER):
        these = np.array([a.task == task for a in asked])
        for k in KS:
            hits = 100.0 * is_own[these, :k].any(1)
            interval = bootstrap_ci(hits.tolist(), seed=seed)
            score = float(hits.mean())
            rows.append(Row("follow_ups", task, arm, None, k, "found", score, interval, len(hits)))
    return rows


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description="Which texts follow-up questions find.")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE")
    parser.add_argument("--arms", type=names, default=list(ARMS))
    parser.add_argument("--limit", type=positive, default=100, help="questions; default: 100")
    parser.add_argument("--output", type=Path, default=None, metavar="DIR")
    add_model_options(parser)
    options = parser.parse_args(arguments)
    if unknown := [arm for arm in options.arms if arm not in ARMS]:
        parser.error(f"unknown arm {unknown[0]!r}; the arms are {', '.join(ARMS)}")
    return options


if __name__ == "__main__":
    run_script(main)
