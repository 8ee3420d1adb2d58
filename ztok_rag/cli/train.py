"""`ztok train` and `ztok average`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ztok_rag.cli.arguments import numbers
from ztok_rag.errors import DataError


def train(
    data: Annotated[
        list[str] | None,
        typer.Option(help="JSON Lines, text file or folder; PATH:0.2 takes a fifth. Repeatable."),
    ] = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of documents, to adapt a checkpoint to. Repeatable."),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Folder of the run; an interrupted one resumes.")
    ] = Path("ztok-run"),
    base: Annotated[str | None, typer.Option(help="Base LLM: Hugging Face id or folder.")] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="Checkpoint to start from; with only a corpus: the one shipped."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if any.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimizer steps in all; default: 1000, or 300 on a corpus.")
    ] = None,
    text_steps: Annotated[
        int | None,
        typer.Option(help="First steps, of the raw-text reader; default: 200, or 0 with --init."),
    ] = None,
    ramp_steps: Annotated[
        int | None,
        typer.Option(help="Steps over which the rate rises; default: 150, or 0 with --init."),
    ] = None,
    rates: Annotated[
        str, typer.Option(help="Rates drawn afterwards.")
    ] = "1.5,2,3,4,4,4,4,6,8,8,16,32",
    batch_tokens: Annotated[int, typer.Option(help="Tokens per batch, about.")] = 1400,
    max_source_tokens: Annotated[int, typer.Option(help="Longest passage trained on.")] = 512,
    relevance_steps: Annotated[
        int, typer.Option(help="Steps of the relevance model, after all others.")
    ] = 1600,
    reader_steps: Annotated[
        int, typer.Option(help="Steps of the reader alone, on what questions choose; the last.")
    ] = 400,
    accumulate: Annotated[int, typer.Option(help="Batches per step.")] = 1,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-4,
    layers: Annotated[int | None, typer.Option(help="Layers the compressor runs.")] = None,
    rank: Annotated[int, typer.Option(help="LoRA rank.")] = 32,
    anchors: Annotated[int, typer.Option(help="Anchor codes per Z-token.")] = 1,
    residual_depth: Annotated[int, typer.Option(help="Residual codes per Z-token.")] = 2,
    distillation: Annotated[
        float | None,
        typer.Option(
            help="Share of the loss that is distilled from the raw-text reader; default: 0, or "
            "0.5 on a corpus."
        ),
    ] = None,
    question_weight: Annotated[float, typer.Option(help="Loss weight of question words.")] = 0.0,
    reconstruction_weight: Annotated[float, typer.Option(help="Loss weight of repeating.")] = 0.3,
    reconstruct: Annotated[float, typer.Option(help="Share of passages repeated.")] = 0.3,
    cloze: Annotated[
        float, typer.Option(help="Share of passages asked for words left out of a sentence.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of data order, rates and weights.")] = 0,
    save_minutes: Annotated[float, typer.Option(help="Minutes between checkpoints.")] = 5.0,
    snapshot_every: Annotated[
        int | None, typer.Option(help="Keep the checkpoint of every so many steps.")
    ] = None,
) -> None:
    """Train a compressor and its reader, or adapt the shipped ones to documents."""
    if not data and not corpus:
        raise DataError("there is nothing to train on; give --data or --corpus.")
    from ztok_rag.codec.model import DEFAULT_CHECKPOINT
    from ztok_rag.codec.prompts import training_templates
    from ztok_rag.training.batches import BatchSettings
    from ztok_rag.training.objective import TrainSettings
    from ztok_rag.training.relevance import RelevanceSettings
    from ztok_rag.training.run import run_training

    if not data and init is None and base is None:
        init = DEFAULT_CHECKPOINT
    fresh = init is None
    if steps is None:
        steps = 1000 if data else 300
    if distillation is None:
        distillation = 0.0 if data else 0.5
    model_settings = {"rank": rank, "anchors": anchors, "residual_depth": residual_depth}
    if layers is not None:
        model_settings["compressor_layers"] = layers
    folder = run_training(
        data or [],
        output,
        corpus=corpus or [],
        base=base,
        init=init,
        device=device,
        model_settings=model_settings,
        batch_settings=BatchSettings(
            batch_tokens=batch_tokens,
            max_source_tokens=max_source_tokens,
            reconstruct=reconstruct,
            cloze=cloze,
            templates=training_templates(),
        ),
        settings=TrainSettings(
            steps=steps,
            text_steps=text_steps if text_steps is not None else 200 * fresh,
            ramp_steps=ramp_steps if ramp_steps is not None else 150 * fresh,
            rates=numbers(rates),
            accumulate=accumulate,
            lr=lr,
            distillation=distillation,
            question_weight=question_weight,
            reconstruction_weight=reconstruction_weight,
            seed=seed,
            save_minutes=save_minutes,
        ),
        relevance=RelevanceSettings(steps=relevance_steps, seed=seed),
        reader_steps=reader_steps,
        snapshot_every=snapshot_every,
    )
    typer.echo(f"checkpoint: {folder}")


def average(
    checkpoints: Annotated[
        list[Path], typer.Argument(help="Checkpoints trained from the same start, two at least.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Checkpoint folder to write.")],
    base: Annotated[str | None, typer.Option(help="Base LLM: Hugging Face id or folder.")] = None,
) -> None:
    """Average the weights of checkpoints from runs that went on side by side."""
    from ztok_rag.training.average import average_checkpoints

    if output.exists():
        raise DataError(f"{output} is there already; name a new folder.")
    average_checkpoints(checkpoints, base=base).save_pretrained(output)
    typer.echo(f"checkpoint: {output}")
