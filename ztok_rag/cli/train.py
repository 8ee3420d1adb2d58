"""`ztok train` and `ztok average`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ztok_rag.cli.arguments import check_device, numbers, odd_records
from ztok_rag.cli.console import resumable, shows_bars
from ztok_rag.cli.output import check_folder
from ztok_rag.errors import DataError
from ztok_rag.files import show


def train(
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="JSON Lines, text file or folder, - is standard input; PATH:0.2 draws from it a "
            "fifth as often, PATH:2 twice. Repeatable."
        ),
    ] = None,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of documents without questions, to adapt to. Repeatable."),
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
        int | None, typer.Option(help="Optimizer steps of each phase; default: 1000, or 300.")
    ] = None,
    phases: Annotated[
        str | None,
        typer.Option(
            help="What to train one after the other, of repeat, excerpt, cloze and answer; a+b "
            "mixes two. Default: all mixed."
        ),
    ] = None,
    rates: Annotated[
        str | None, typer.Option(help="Rates drawn, with commas between them.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Positions of a batch; default: 36864 on a GPU, else 3072.")
    ] = None,
    accumulate: Annotated[int, typer.Option(help="Batches per step and device.")] = 1,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    rank: Annotated[int, typer.Option(help="LoRA rank of a fresh checkpoint.")] = 64,
    slots: Annotated[int, typer.Option(help="Most tokens that a Z-token holds, likewise.")] = 16,
    packer_width: Annotated[int, typer.Option(help="Units of the packer, likewise.")] = 2048,
    before: Annotated[
        float, typer.Option(help="Share of questions asked before the context, too.")
    ] = 0.65,
    selector_steps: Annotated[
        int, typer.Option(help="Steps of the selector, after all phases.")
    ] = 1600,
    selector: Annotated[
        bool,
        typer.Option(
            "--selector",
            help="Train the selector of --init alone, for --selector-steps, on questions whose "
            "passages say the answer.",
        ),
    ] = False,
    finder: Annotated[
        bool,
        typer.Option(
            "--finder",
            help="Train the finder of --init alone, for --finder-steps, likewise.",
        ),
    ] = False,
    finder_steps: Annotated[int, typer.Option(help="Steps of the finder.")] = 3000,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="With --finder: start from an untrained one.")
    ] = False,
    write: Annotated[
        bool,
        typer.Option(
            "--write",
            help="Train the write head of --init alone, on text; --lr, --size and "
            "phases are of the rest.",
        ),
    ] = False,
    write_positions: Annotated[
        int, typer.Option(help="With --write: states of the LLM to train on; 1,152 bytes each.")
    ] = 40_000,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that make a GPU's batches; default: most cores, 0 on a CPU."),
    ] = None,
    compile_layers: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compile the base's layers.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of rows and weights.")] = 0,
    save_minutes: Annotated[float, typer.Option(help="Minutes between checkpoints.")] = 5.0,
    skip_odd_records: Annotated[
        bool, typer.Option("--skip-odd-records", help="Leave malformed records out, and go on.")
    ] = False,
) -> None:
    """Train a checkpoint, or adapt the shipped one to documents or to questions."""
    if not data and not corpus:
        raise DataError("there is nothing to train on; give --data or --corpus.")
    import os

    import torch

    from ztok_rag.codec.model import DEFAULT_CHECKPOINT
    from ztok_rag.training.finder import FinderSettings
    from ztok_rag.training.loop import TrainSettings
    from ztok_rag.training.relevance import RelevanceSettings
    from ztok_rag.training.rows import RATES, RowSettings
    from ztok_rag.training.run import PartSettings, parse_phases, run_part, run_training
    from ztok_rag.training.write_states import WriteSettings

    if selector + finder + write > 1:
        raise DataError(
            "--selector, --finder and --write each train one part alone; give one of them."
        )
    if not 0 <= before <= 1:
        raise DataError(f"--before is a share, 0 to 1, not {before}.")
    wanted = numbers(rates) if rates else RATES
    if not wanted or min(wanted) < 1:
        raise DataError("--rates are source tokens per Z-token, at least 1 each.")
    if not data and init is None and base is None:
        init = DEFAULT_CHECKPOINT
    check_device(device)
    on_gpu = torch.cuda.is_available() if device is None else device.startswith("cuda")
    devices = int(os.environ.get("WORLD_SIZE", "1"))  # `accelerate launch` sets it
    if workers is None:
        workers = max(1, min(12, (os.cpu_count() or 1) // devices - 2)) if on_gpu else 0
    check_folder(output)
    shared: dict[str, Any] = {
        "corpus": corpus or [],
        "base": base,
        "init": init,
        "device": device,
        "progress": shows_bars(),
        "odd": odd_records(skip_odd_records),
    }

    relevance = RelevanceSettings(steps=selector_steps, seed=seed, save_minutes=save_minutes)
    part: PartSettings | None = None
    if selector:
        part = relevance
    elif finder:
        part = FinderSettings(
            steps=finder_steps, seed=seed, save_minutes=save_minutes, is_fresh=fresh
        )
    elif write:
        part = WriteSettings(
            positions=write_positions,
            steps=steps if steps is not None else WriteSettings.steps,
            seed=seed,
            save_minutes=save_minutes,
        )

    def run() -> Path:
        if part is not None:
            return run_part(part, data or [], output, **shared)
        return run_training(
            data or [],
            output,
            model_settings={"rank": rank, "slots": slots, "packer_width": packer_width},
            phases=parse_phases(phases) if phases else None,
            rows=RowSettings(rates=tuple(wanted), before=before),
            settings=TrainSettings(
                steps=steps if steps is not None else 1000 if data else 300,
                size=size or (36864 if on_gpu else 3072),
                per_step=accumulate * devices,
                lr=lr,
                workers=workers,
                seed=seed,
                save_minutes=save_minutes,
                is_compiled=compile_layers,
            ),
            selector=relevance,
            **shared,
        )

    with resumable():
        folder = run()
    typer.echo(f"checkpoint: {show(folder)}")


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
        raise DataError(f"{show(output)} is there already; name a new folder.")
    check_folder(output)
    average_checkpoints(checkpoints, base=base).save_pretrained(output)
    typer.echo(f"checkpoint: {show(output)}")
