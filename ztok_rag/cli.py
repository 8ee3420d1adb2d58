"""The `ztok` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ztok_rag.errors import DataError, ZtokError

app = typer.Typer(
    name="ztok",
    help="Compress retrieved context into Z-tokens.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def _root() -> None:
    """Compress retrieved context into Z-tokens."""


def _floats(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"expected numbers separated by commas, got {text!r}") from error


@app.command()
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
    accumulate: Annotated[int, typer.Option(help="Batches per step.")] = 1,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 5e-4,
    layers: Annotated[int | None, typer.Option(help="Layers the compressor runs.")] = None,
    rank: Annotated[int, typer.Option(help="LoRA rank.")] = 32,
    anchors: Annotated[int, typer.Option(help="Anchor codes per Z-token.")] = 2,
    residual_depth: Annotated[int, typer.Option(help="Residual codes per Z-token.")] = 1,
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
    seed: Annotated[int, typer.Option(help="Of data order, rates and weights.")] = 0,
    save_minutes: Annotated[float, typer.Option(help="Minutes between checkpoints.")] = 5.0,
    snapshot_every: Annotated[
        int | None, typer.Option(help="Keep the checkpoint of every so many steps.")
    ] = None,
) -> None:
    """Train a compressor and its reader, or adapt the shipped ones to documents."""
    if not data and not corpus:
        raise DataError("there is nothing to train on; give --data or --corpus.")
    from ztok_rag.model import DEFAULT_CHECKPOINT
    from ztok_rag.prompts import training_templates
    from ztok_rag.training.data import BatchSettings
    from ztok_rag.training.run import run_training
    from ztok_rag.training.trainer import TrainSettings

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
            templates=training_templates(),
        ),
        settings=TrainSettings(
            steps=steps,
            text_steps=text_steps if text_steps is not None else 200 * fresh,
            ramp_steps=ramp_steps if ramp_steps is not None else 150 * fresh,
            rates=_floats(rates),
            accumulate=accumulate,
            lr=lr,
            distillation=distillation,
            question_weight=question_weight,
            reconstruction_weight=reconstruction_weight,
            seed=seed,
            save_minutes=save_minutes,
        ),
        snapshot_every=snapshot_every,
    )
    typer.echo(f"checkpoint: {folder}")


@app.command()
def compress(
    file: Annotated[Path, typer.Argument(help="UTF-8 text file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File of codes to write.")],
    rate: Annotated[float, typer.Option(help="Source tokens per Z-token.")] = 4.0,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one shipped.")] = None,
    base: Annotated[str | None, typer.Option(help="Base LLM: Hugging Face id or folder.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if any.")] = None,
) -> None:
    """Compress a text file into a file of Z-token codes."""
    text = _read_text(file)
    from ztok_rag.compressor import ZCompressor

    compressor = ZCompressor.from_pretrained(checkpoint, base=base, device=device)
    (z,) = compressor.compress([text], rate)
    z.save(output)
    stored = len(z.to_bytes())
    typer.echo(
        f"{z.source_tokens} tokens -> {len(z)} Z-tokens (rate {z.rate:.2f}), {stored} bytes, "
        f"{stored / z.source_tokens:.2f} per token"
    )


@app.command()
def decompress(
    file: Annotated[Path, typer.Argument(help="File that `ztok compress` wrote.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Text file to write; default: stdout.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one shipped.")] = None,
    base: Annotated[str | None, typer.Option(help="Base LLM: Hugging Face id or folder.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if any.")] = None,
) -> None:
    """Write the text that a file of codes stands for, as the reader reconstructs it."""
    from ztok_rag.sequence import ZSequence, write_atomic

    z = ZSequence.load(file)
    from ztok_rag.compressor import ZCompressor

    compressor = ZCompressor.from_pretrained(checkpoint, base=base, device=device)
    (text,) = compressor.decompress([z])
    if output is None:
        typer.echo(text)
    else:
        write_atomic(output, text.encode())


@app.command("eval")
def evaluate(
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA.jsonl",
            help="JSON Lines of {context, question, answers} or of {text}.",
        ),
    ],
    output: Annotated[
        Path, typer.Option(help="Folder of the results; an interrupted evaluation resumes.")
    ],
    rates: Annotated[str, typer.Option(help="Source tokens per Z-token.")] = "4,8,16",
    limit: Annotated[
        int | None, typer.Option(help="Records per file, drawn by --seed; default: all.")
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Of qa,reconstruction; default: all that the records allow."),
    ] = None,
    arms: Annotated[
        str, typer.Option(help="Of none,text,text-reader,ztok; how questions get their context.")
    ] = "none,text-reader,ztok",
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one shipped.")] = None,
    base: Annotated[str | None, typer.Option(help="Base LLM: Hugging Face id or folder.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if any.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw and of the intervals.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Prompts or texts in one batch.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 32,
    max_text_tokens: Annotated[
        int, typer.Option(help="Longer texts are cut to this before they are reconstructed.")
    ] = 256,
) -> None:
    """Score a checkpoint: answers from Z-tokens, and texts reconstructed from them."""
    from ztok_rag.evaluation import format_table
    from ztok_rag.evaluation.checkpoint import EvalSettings, evaluate_checkpoint, read_datasets

    datasets = read_datasets(data, None if tasks is None else _names(tasks))
    settings = EvalSettings(
        rates=_numbers(rates),
        arms=_names(arms),
        limit=limit,
        seed=seed,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        max_text_tokens=max_text_tokens,
    )
    from ztok_rag.compressor import ZCompressor

    compressor = ZCompressor.from_pretrained(checkpoint, base=base, device=device)
    name = str(checkpoint or "default")
    try:
        rows, note = evaluate_checkpoint(compressor, datasets, output, settings, checkpoint=name)
    except KeyboardInterrupt:
        typer.echo("ztok: stopped; the same command goes on from here.", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{format_table(rows)}\n{note}\nWritten: {output}/results.json, predictions.jsonl")


@app.command()
def info(
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one shipped.")] = None,
) -> None:
    """Show versions, device, checkpoint and cache folder."""
    import platform
    from importlib.metadata import version

    import torch

    from ztok_rag.base import cache_dir, fastest_dtype
    from ztok_rag.config import ZConfig
    from ztok_rag.model import DEFAULT_CHECKPOINT

    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = checkpoint or DEFAULT_CHECKPOINT
    config = ZConfig.load(folder)
    packages = ("ztok-rag", "torch", "transformers", "peft", "llama-index-core")
    rows = {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "device": f"{device} ({str(fastest_dtype(device)).removeprefix('torch.')})",
        "cache": str(cache_dir()),
        "checkpoint": str(folder),
        "base LLM": f"{config.base} ({config.base_fingerprint})",
        "compressor": f"first {config.compressor_layers} layers, LoRA rank {config.rank}",
        "Z-token": f"{config.anchors} anchor codes, {config.residual_depth} residual codes",
        "adapters": ", ".join(config.adapters),
    }
    for name, value in rows.items():
        typer.echo(f"{name:18} {value}")


def _names(text: str) -> tuple[str, ...]:
    """The parts of a list separated by commas."""
    return tuple(name for part in text.split(",") if (name := part.strip()))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, _names(text)))
    except ValueError as error:
        raise DataError(f"expected numbers separated by commas, got {text!r}.") from error


def _read_text(file: Path) -> str:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text; convert it first.") from error
    if not text.strip():
        raise DataError(f"{file} has no words to compress.")
    return text


def main() -> None:
    """Run the command; errors of ours are one line on stderr and exit status 1."""
    try:
        app()
    except ZtokError as error:
        typer.echo(f"ztok: {error}", err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
