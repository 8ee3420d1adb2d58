"""Markdown: tables, numbers with their intervals, and images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from result_rows import Json


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table. The first column is left-aligned, the others right-aligned."""
    marks = ["---", *("---:" for _ in header[1:])]
    rows = [list(header), marks, *(list(line) for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def score(row: Mapping[str, Any] | None, digits: int = 1) -> str:
    """A score with its interval; empty for `None`."""
    if row is None:
        return ""
    low, high = row["ci95"]
    return f"{row['score']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def signed(row: Json, digits: int = 1) -> str:
    """A difference with its sign, and its interval."""
    low, high = row["ci95"]
    return f"{row['score']:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def mib(value: float | None) -> str:
    return "" if value is None else f"{value / 2**20:.1f}"


def bold(cells: Sequence[str], when: bool) -> list[str]:
    return [f"**{cell}**" if when and cell else cell for cell in cells]


def picture(text: str, file: Path, document: Path) -> str:
    """A Markdown image, with its path relative to the document."""
    return f"![{text}]({Path(os.path.relpath(file, document.parent)).as_posix()})"


@dataclass(frozen=True)
class Place:
    """Where a section is written: its document, and the folder of pictures."""

    document: Path
    pictures: Path

    def image(self, text: str, file: Path) -> str:
        return picture(text, file, self.document)
