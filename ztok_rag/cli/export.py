"""`ztok export`: the reader as an ordinary Hugging Face checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ztok_rag.cli.arguments import load_compressor
from ztok_rag.cli.output import check_folder, literal
from ztok_rag.errors import DataError

_DTYPES = ("float32", "bfloat16", "float16")


def export(
    folder: Annotated[Path, typer.Argument(help="Folder to write; it must be new or empty.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one shipped.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Base LLM; default: the one that the checkpoint names.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16; default: what the reader computes in."),
    ] = None,
) -> None:
    """Write the reader, its adapter merged, for engines that take prompt embeddings."""
    folder = literal(folder)
    if dtype is not None and dtype not in _DTYPES:
        raise DataError(f"--dtype is {', '.join(_DTYPES)}, not {dtype}.")
    check_folder(folder)
    import torch

    from ztok_rag.codec.export import check_new, export_reader

    check_new(folder)
    compressor = load_compressor(checkpoint, base, "cpu")
    chosen = None if dtype is None else getattr(torch, dtype)
    export_reader(compressor.model, folder, dtype=chosen)
    typer.echo(f"{folder}: the reader of checkpoint {compressor.fingerprint}")
