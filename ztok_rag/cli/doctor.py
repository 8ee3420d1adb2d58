"""`ztok doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    store: Annotated[
        str | None,
        typer.Option(
            help="Folder of an index or of a store, or URL of a store in Redis; default: the store."
        ),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Default: the one shipped.")] = None,
    base: Annotated[str | None, typer.Option(help="Base LLM: Hugging Face id or folder.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda if any.")] = None,
) -> None:
    """Check the installation: folders, packages, models, one compression and one answer."""
    from ztok_rag.cli.checks import Checks

    problems = 0
    for finding in Checks(store, checkpoint, base, device).run():
        problems += not finding.ok
        typer.echo(f"{finding.name:18} {'ok' if finding.ok else 'problem'}: {finding.text}")
    if problems:
        raise typer.Exit(1)
