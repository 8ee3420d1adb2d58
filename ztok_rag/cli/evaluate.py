"""`ztok eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ztok_rag.cli.arguments import load_compressor, names, numbers, odd_records
from ztok_rag.cli.console import resumable, say, shows_bars
from ztok_rag.cli.output import check_folder
from ztok_rag.files import show


def evaluate(
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA.jsonl",
            help="JSON Lines of {context, question, answers} or of {text}; - is standard input.",
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="Folder of the results; an interrupted evaluation resumes.")
    ],
    rates: Annotated[str, typer.Option(help="Source tokens per Z-token.")] = "2,4,8,16",
    limit: Annotated[
        int | None, typer.Option(help="Records per file, drawn by --seed; default: all.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Of qa,reconstruction,writing; default: of the first two those that the records "
            "allow."
        ),
    ] = None,
    arms: Annotated[
        str,
        typer.Option(help="Of none,text,text-reader,ztok,ztok-focus,ztok-twice: who reads what."),
    ] = "none,text-reader,ztok,ztok-focus",
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one shipped.")] = None,
    base: Annotated[str | None, typer.Option(help="Base LLM: Hugging Face id or folder.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if any.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw and of the intervals.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Prompts or texts in one batch.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 32,
    max_text_tokens: Annotated[
        int, typer.Option(help="Longer texts are cut to this before they are reconstructed.")
    ] = 256,
    skip_odd_records: Annotated[
        bool, typer.Option("--skip-odd-records", help="Leave malformed records out, and go on.")
    ] = False,
) -> None:
    """Score a checkpoint: answers from Z-tokens, and texts reconstructed from them."""
    from ztok_rag.evaluation import format_table
    from ztok_rag.evaluation.checkpoint import EvalSettings, evaluate_checkpoint
    from ztok_rag.evaluation.datasets import read_datasets

    odd = odd_records(skip_odd_records)
    datasets = read_datasets(data, None if tasks is None else names(tasks), odd)
    if odd and odd.found:
        say(odd.report())
    settings = EvalSettings(
        rates=numbers(rates),
        arms=names(arms),
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        max_text_tokens=max_text_tokens,
    )
    check_folder(output)
    name = "default" if checkpoint is None else show(checkpoint)
    with resumable():
        compressor = load_compressor(checkpoint, base, device)
        rows, note = evaluate_checkpoint(
            compressor, datasets, output, settings, checkpoint=name, progress=shows_bars()
        )
    typer.echo(
        f"{format_table(rows)}\n{note}\nWritten: {show(output)}/results.json, predictions.jsonl"
    )
