"""The `ztok` command: its subcommands, in the order in which the help lists them."""

from __future__ import annotations

import typer

from ztok_rag.cli import codes, evaluate, index, info, train
from ztok_rag.errors import ZtokError

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


app.command()(train.train)
app.command()(train.average)
app.command()(codes.compress)
app.command()(codes.decompress)
app.command()(codes.view)
app.command("eval")(evaluate.evaluate)
app.command("index")(index.index_folder)
app.command()(index.ask)
app.command()(index.stats)
app.command()(info.info)


def main() -> None:
    """Run the command; errors of ours are one line on stderr and exit status 1."""
    try:
        app()
    except ZtokError as error:
        typer.echo(f"ztok: {error}", err=True)
        raise SystemExit(1) from None
