"""What the benchmark scripts share: options, the model, cutting into chunks, and the run itself."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tqdm import tqdm

from peers import PEER_NAMES, check_packages, make_peers
from report import write_report
from ztok_rag.cli.arguments import check_device
from ztok_rag.cli.console import resumable, run_program, say, shows_bars
from ztok_rag.cli.output import check_folder
from ztok_rag.evaluation import (
    ARM_NAMES,
    Arm,
    PredictionLog,
    Question,
    Row,
    evaluate,
    format_table,
    make_arms,
    paired_differences,
    weights_digest,
    write_results,
)
from ztok_rag.files import show
from ztok_rag.jsonl import OddRecords

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor

Retrieve = Callable[[Sequence[Question], int], Sequence[Sequence[str]]]
"""Takes questions and a number `k`; returns `k` chunks for each, in reading order."""

ALL = "all"
"""The value of `--arms` that stands for all arms."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see --help)\n")


def make_parser(description: str, *, k: int, limit: int | None) -> Parser:
    """A parser with the options of every benchmark.

    Args:
        description: of the benchmark.
        k: default number of retrieved chunks.
        limit: default number of questions; `None` is all.
    """
    parser = Parser(description=description)
    many = "all" if limit is None else limit
    parser.add_argument(
        "--arms",
        type=names,
        default=list(ARM_NAMES),
        metavar="A,B",
        help=f"comma-separated, of {', '.join((*ARM_NAMES, *PEER_NAMES))}, or `{ALL}` for all of "
        f"them (default: {','.join(ARM_NAMES)})",
    )
    parser.add_argument(
        "--rates",
        type=numbers,
        default=[4.0, 8.0],
        metavar="R,S",
        help="source tokens per context token, comma-separated (default: 4,8)",
    )
    parser.add_argument(
        "--k",
        type=counts,
        default=[k],
        metavar="K,L",
        help=f"chunks retrieved per question, comma-separated (default: {k})",
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
    add_model_options(parser)
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="default: 8")
    parser.add_argument(
        "--measure",
        type=count,
        default=8,
        metavar="N",
        help="questions per task and arm whose prefill is timed (default: 8)",
    )
    add_skip_option(parser)
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options of what is measured: checkpoint, base and device; and the seed."""
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
    parser.add_argument("--seed", type=count, default=0, help="default: 0")


def names(text: str) -> list[str]:
    """Comma-separated names, as an argument type."""
    return [name for part in text.split(",") if (name := part.strip())]


def numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in names(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers") from None


def counts(text: str) -> list[int]:
    """Comma-separated whole numbers, at least one, as an argument type."""
    if not (found := list(dict.fromkeys(map(count, names(text))))):
        raise argparse.ArgumentTypeError("it must name at least one number")
    return found


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
    """Run a script's main function. An error is one line on stderr and a non-zero exit status."""
    name = Path(sys.argv[0]).name

    def body() -> None:
        with resumable(name):
            main()

    run_program(body, name)


def odd_records(options: argparse.Namespace) -> OddRecords | None:
    """What collects odd records where the options say so; `None` makes them errors."""
    return OddRecords() if options.skip_odd_records else None


def report_odd(odd: OddRecords | None) -> None:
    """Say which records were left out, if any."""
    if odd is not None and odd.found:
        say(odd.report(), Path(sys.argv[0]).name)


def add_skip_option(parser: argparse.ArgumentParser) -> None:
    """Add `--skip-odd-records`."""
    parser.add_argument(
        "--skip-odd-records", action="store_true", help="leave malformed records out, and go on"
    )


def load_compressor(options: argparse.Namespace) -> ZCompressor:
    """Load the compressor that the options name. Its `reader` is the reader.

    Raises:
        ZtokError: it cannot be loaded, or results could not be written afterwards.
    """
    if options.output is not None:
        check_folder(options.output)
    check_device(options.device)
    from ztok_rag.codec.compressor import ZCompressor

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
    best_first: bool,
    summarize: Callable[[Sequence[Arm], PredictionLog, int], list[Row]],
) -> None:
    """Answer all questions by all arms at every `k`, print the table and write the output folder.

    Args:
        options: as parsed by `make_parser`.
        benchmark: its name in the results.
        note: describes the data in the results.
        tasks: the questions of each task.
        settings: what decides a prediction, besides the settings of all benchmarks.
        compressor: makes the Z-tokens; its reader answers.
        retrieve: returns the chunks of questions.
        best_first: whether `retrieve` returns chunks by rank, the best first.
        summarize: takes the arms, the log and `k`; returns the rows.
    """
    chosen = [*ARM_NAMES, *PEER_NAMES] if ALL in options.arms else options.arms
    check_packages(chosen)
    peers = make_peers(compressor, best_first=best_first)
    arms = make_arms(chosen, options.rates, peers)
    output = options.output or Path("results") / benchmark
    checkpoint = show(options.checkpoint or "default")
    shared = {
        "benchmark": benchmark,
        "checkpoint": checkpoint,
        "fingerprint": compressor.fingerprint,
        "weights": weights_digest(compressor),
        "base": options.base,
        "seed": options.seed,
    }
    log = PredictionLog(output, {**shared, **settings})
    # Without context, answers do not depend on k.
    arms_at = {
        k: [arm for arm in arms if arm.rate is not None or k == options.k[0]] for k in options.k
    }
    total = sum(map(len, arms_at.values())) * sum(len(questions) for questions in tasks.values())
    try:
        with tqdm(total=total, unit="answer", smoothing=0.1, disable=not shows_bars()) as bar:
            for k, questions in product(options.k, tasks.values()):
                evaluate(
                    questions,
                    arms_at[k],
                    compressor=compressor,
                    retrieve=partial(retrieve, k=k),
                    log=log.at(k),
                    batch_size=options.batch_size,
                    measured=options.measure,
                    seed=options.seed,
                    bar=bar,
                )
    finally:
        log.close()
    rows = []
    for k in options.k:
        rows += [
            row
            for row in summarize(arms, log.at(k), k)
            if row.rate is not None or k == options.k[0]
        ]
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
    write_report(output / "report.html", results, tasks, arms, log.at(options.k[0]))
    print(format_table(rows))
    if cut := sum(row.truncated or 0 for row in rows if row.task != "average"):
        print(f"{cut} prompts were longer than the base LLM reads and lost their middle.")
    print(f"{note}\nWritten: {show(output)}/results.json, report.html, predictions.jsonl")


def write_measured(
    options: argparse.Namespace,
    rows: Sequence[Row],
    compressor: ZCompressor,
    *,
    benchmark: str,
    note: str,
) -> None:
    """Write and print what was measured without a log of predictions."""
    import torch

    from ztok_rag.codec.base import dtype_name

    output = options.output or Path("results") / benchmark
    base = compressor.model.base
    write_results(
        output,
        rows,
        seed=options.seed,
        checkpoint=str(options.checkpoint or "default"),
        device=str(base.device),
        fingerprint=compressor.fingerprint,
        benchmark=benchmark,
        note=note,
        dtype=dtype_name(base.dtype),
        threads=torch.get_num_threads(),
    )
    print(format_table(rows))
    print(f"{note}\nWritten: {show(output)}/results.json")


def write_without_model(
    output: Path,
    rows: Sequence[Row],
    *,
    seed: int,
    benchmark: str,
    note: str,
    **extra: Any,
) -> None:
    """Write and print what was measured of an index or a store, without a model.

    `extra` are further fields, as of `write_results`.
    """
    write_results(
        output,
        rows,
        seed=seed,
        checkpoint="none",
        device="cpu",
        benchmark=benchmark,
        note=note,
        **extra,
    )
    for each in rows:
        print(f"{each.chunks:9} {each.arm:7} {each.metric:26} {each.score:16.3f}")
    print(f"{note}\nWritten: {show(output)}/results.json")


def add_records_option(parser: argparse.ArgumentParser) -> None:
    """The option `--data`, of records with questions."""
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="PATH",
        help="JSON Lines of records with context and question, or a folder of such files",
    )


def peer_differences(
    tasks: Mapping[str, Sequence[Question]],
    arms: Sequence[Arm],
    log: PredictionLog,
    *,
    benchmark: str,
    k: int,
    seed: int,
) -> list[Row]:
    """Paired differences between Z-tokens and every peer at the same rate."""
    pairs = [
        (arm, peer)
        for arm in arms
        for peer in arms
        if arm.name.startswith("ztok") and peer.shorten is not None and arm.rate == peer.rate
    ]
    return [
        row
        for arm, peer in pairs
        for row in paired_differences(tasks, arm, peer, log, benchmark=benchmark, k=k, seed=seed)
    ]


def chunk_size(text: str) -> int:
    """A chunk size in tokens, as an argument type."""
    if (number := count(text)) < 16:
        raise argparse.ArgumentTypeError("a chunk has at least 16 tokens")
    return number


def split_context(context: str, tokenizer: Any, chunk_tokens: int) -> list[str]:
    """Cut a context into chunks of about `chunk_tokens` tokens, at sentences or lines if possible.

    A chunk keeps the indentation of its first line and loses white space at its end. A context of
    white space alone has no chunks.
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
        if found < 0:  # the splitter has changed white space; begin where the last chunk ended
            found = position
        position = min(found + len(piece), len(context))
        line = context.rfind("\n", 0, found) + 1
        starts.append(found if context[line:found].strip() else line)
    ends = [*starts[1:], len(context)]
    pieces = [context[a:b].rstrip() for a, b in zip(starts, ends, strict=True)]
    return [piece for piece in pieces if piece]
