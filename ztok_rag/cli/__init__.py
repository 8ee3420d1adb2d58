"""The `ztok` command; it only reads arguments, calls the other rooms and prints."""

from ztok_rag.cli.root import app, main

__all__ = ["app", "main"]
