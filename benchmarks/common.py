"""What the benchmark scripts share: options, models, retrieval, and the end of a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from report import write_report
from ztok_rag.errors import ZtokError
from ztok_rag.evaluation import (
    ARM_NAMES,
    Arm,
    PredictionLog,
    Question,
    Row,
    adapters_digest,
    evaluate,
    format_table,
    make_arms,
    write_results,
)

if TYPE_CHECKING:
    from ztok_rag.compressor import ZCompressor

Retrieve = Callable[[Sequence[Question]], Sequence[Sequence[str]]]


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors take one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def make_parser(description: str, *, k: int, limit: int | None) -> Parser:
    """A parser with the options that every benchmark has.

    Args:
        k: default number of chunks retrieved.
        limit: default number of questions; `None` is all.
    """
    parser = Parser(description=description)
    many = "all" if limit is None else limit
    parser.add_argument(
        "--arms",
        type=names,
        default=list(ARM_NAMES),
        metavar="A,B",
        help=f"comma-separated, of {', '.join(ARM_NAMES)} (default: all)",
    )
    parser.add_argument(
        "--rates",
        type=_numbers,
        default=[4.0, 8.0],
        metavar="R,S",
        help="source tokens per Z-token, comma-separated (default: 4,8)",
    )
    parser.add_argument(
        "--k",
        type=count,
        default=k,
        help=f"chunks retrieved per question (default: {k})",
    )
    parser.add_argument(
        "--limit",
        type=positive,
        default=limit,
        metavar="N",
        help=f"questions, drawn by --seed (default: {many})",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=None,
        metavar="DIR",
        help="folder of the results; one that holds an interrupted run resumes it "
        "(default: results/NAME of the benchmark)",
    )
    parser.add_argument(
        "--checkpoint", default=None, metavar="DIR", help="default: the one shipped"
    )
    parser.add_argument(
        "--base",
        default=None,
        metavar="ID",
        help="base LLM, by id or folder (default: the one the checkpoint names)",
    )
    parser.add_argument("--device", default=None, help="default: cuda if there is one, else cpu")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="default: 8")
    parser.add_argument(
        "--measure",
        type=count,
        default=8,
        metavar="N",
        help="questions per task and arm whose prefill is timed (default: 8)",
    )
    parser.add_argument("--seed", type=count, default=0, help="default: 0")
    return parser


def names(text: str) -> list[str]:
    """Comma-separated names, as an argument type."""
    return [name for part in text.split(",") if (name := part.strip())]


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in names(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers") from None


def count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def positive(text: str) -> int:
    """A whole number of at least 1, as an argument type."""
    if not (number := count(text)):
        raise argparse.ArgumentTypeError("it must be at least 1")
    return number


def run_script(main: Callable[[], None]) -> NoReturn:
    """Run a script's main function; an error is one line on stderr and a non-zero exit."""
    try:
        main()
    except ZtokError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def load_compressor(options: argparse.Namespace) -> ZCompressor:
    """The compressor, and by its `reader` the reader, that the options name."""
    from ztok_rag.compressor import ZCompressor

    return ZCompressor.from_pretrained(options.checkpoint, base=options.base, device=options.device)


def run(
    options: argparse.Namespace,
    *,
    benchmark: str,
    note: str,
    tasks: Mapping[str, Sequence[Question]],
    settings: Mapping[str, Any],
    compressor: ZCompressor,
    retrieve: Retrieve,
    summarize: Callable[[Sequence[Arm], PredictionLog], list[Row]],
) -> None:
    """Answer all questions by all arms, print the table and write the output folder.

    Args:
        note: what the data are, shown with the results.
        settings: what decides a prediction, beside the settings common to all benchmarks.
    """
    reader = compressor.reader
    arms = make_arms(options.arms, options.rates, reader.adapters)
    output = options.output or Path("results") / benchmark
    checkpoint = str(options.checkpoint or "default")
    shared = {
        "benchmark": benchmark,
        "checkpoint": checkpoint,
        "fingerprint": compressor.fingerprint,
        "adapters": adapters_digest(compressor),
        "base": options.base,
        "k": options.k,
        "seed": options.seed,
    }
    log = PredictionLog(output, {**shared, **settings})
    total = len(arms) * sum(len(questions) for questions in tasks.values())
    try:
        with tqdm(total=total, unit="answer", smoothing=0.1) as bar:
            for questions in tasks.values():
                evaluate(
                    questions,
                    arms,
                    compressor=compressor,
                    retrieve=retrieve,
                    log=log,
                    batch_size=options.batch_size,
                    measured=options.measure,
                    seed=options.seed,
                    bar=bar,
                )
    finally:
        log.close()
    rows = summarize(arms, log)
    print(format_table(rows))
    if cut := sum(row.extra.get("truncated", 0) for row in rows if row.task != "average"):
        print(f"{cut} prompts were longer than the base LLM reads and lost their middle.")
    results = write_results(
        output,
        rows,
        seed=options.seed,
        checkpoint=checkpoint,
        device=str(options.device or "auto"),
        fingerprint=compressor.fingerprint,
        benchmark=benchmark,
        note=note,
    )
    write_report(output / "report.html", results, tasks, arms, log)
    print(f"{note}\nWritten: {output}/results.json, report.html, predictions.jsonl")


def embed_texts(texts: Sequence[str]) -> NDArray[np.float32]:
    """Unit vectors `[n, d]` of passages by the default embedding model."""
    return _unit(_embedding().get_text_embedding_batch(list(texts)))


def embed_queries(queries: Sequence[str]) -> NDArray[np.float32]:
    """Unit vectors `[n, d]` of questions by the default embedding model."""
    model = _embedding()
    return _unit([model.get_query_embedding(query) for query in queries])


def _embedding() -> Any:
    from ztok_rag.embedding import default_embedding

    return default_embedding()


def _unit(vectors: Sequence[Sequence[float]]) -> NDArray[np.float32]:
    array = np.asarray(vectors, dtype=np.float32)
    norms = np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)
    return np.asarray(array / norms, dtype=np.float32)


def chunk_size(text: str) -> int:
    """A number of tokens that a chunk can have, as an argument type."""
    if (number := count(text)) < 16:
        raise argparse.ArgumentTypeError("a chunk has at least 16 tokens")
    return number


def split_context(context: str, tokenizer: Any, chunk_tokens: int) -> list[str]:
    """Chunks of about `chunk_tokens` tokens that end at sentences or lines where they can.

    A chunk keeps its first line's indentation and loses line breaks and spaces at its end; a
    context of nothing but white space has no chunks.
    """
    from llama_index.core.node_parser import SentenceSplitter

    if not context.strip():
        return []
    splitter = SentenceSplitter(
        chunk_size=chunk_tokens,
        chunk_overlap=0,
        tokenizer=lambda text: tokenizer.encode(text, add_special_tokens=False, verbose=False),
    )
    starts, position = [], 0
    for piece in splitter.split_text(context):
        found = context.find(piece, position)
        if found < 0:  # the splitter rewrote white space; this chunk begins where the last ended
            found = position
        position = min(found + len(piece), len(context))
        line = context.rfind("\n", 0, found) + 1
        starts.append(found if context[line:found].strip() else line)
    ends = [*starts[1:], len(context)]
    pieces = [context[a:b].rstrip() for a, b in zip(starts, ends, strict=True)]
    return [piece for piece in pieces if piece]
