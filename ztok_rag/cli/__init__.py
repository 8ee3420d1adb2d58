"""The `ztok` command: it reads arguments, calls the other packages, and prints."""

from __future__ import annotations

from typing import Any

from ztok_rag.cli.console import run_program

__all__ = ["app", "main"]


def main() -> None:
    """Run the command; errors of ours are one line on stderr and exit status 1."""
    run_program(_run, "ztok")


def _run() -> None:
    # Imported here, where Ctrl-C has its one line already.
    from ztok_rag.cli.root import app

    app()


def __getattr__(name: str) -> Any:
    if name == "app":
        from ztok_rag.cli.root import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
