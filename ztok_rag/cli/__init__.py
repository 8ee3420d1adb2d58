"""The `ztok` command: it reads arguments, calls the other packages, and prints."""

from ztok_rag.cli.root import app, main

__all__ = ["app", "main"]
