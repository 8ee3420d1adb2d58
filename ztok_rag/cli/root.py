"""The `ztok` command: its subcommands, in the order in which the help lists them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from ztok_rag.cli import codes, doctor, evaluate, export, index, info, serve, train
from ztok_rag.cli.console import INTERRUPTED, NO_READER, say


class _Commands(TyperGroup):
    """Commands that end as those of the operating system do."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with _usual_ends():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with _usual_ends():
            return super().invoke(ctx)


@contextmanager
def _usual_ends() -> Iterator[None]:
    """Turn exceptions into exit statuses before Typer does so in its own way."""
    try:
        yield
    except KeyboardInterrupt:
        say("stopped.")
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        raise SystemExit(NO_READER) from None


app = typer.Typer(
    name="ztok",
    cls=_Commands,
    help="Compress retrieved context into Z-tokens.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def _root() -> None:
    """Compress retrieved context into Z-tokens."""


app.command()(train.train)
app.command()(train.average)
app.command()(codes.compress)
app.command()(codes.decompress)
app.command()(codes.view)
app.command("eval")(evaluate.evaluate)
app.command("index")(index.index_folder)
app.command()(index.ask)
app.command()(index.stats)
app.command()(serve.serve)
app.command()(export.export)
app.command()(info.info)
app.command()(doctor.doctor)
