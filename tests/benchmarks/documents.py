"""Documents made of results, as `figures.py` makes them."""

from __future__ import annotations

from pathlib import Path

import figures


def filled(results: Path, tmp_path: Path, *names: str) -> str:
    """A document of some sections."""
    document = tmp_path / "made.md"
    document.write_text("".join(f"<!-- begin: {n} -->\n<!-- end: {n} -->\n" for n in names))
    options = {"--results": results, "--documents": document, "--pictures": tmp_path}
    figures.main([str(part) for option in options.items() for part in option])
    return document.read_text()
