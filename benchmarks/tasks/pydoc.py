"""Questions on Python's own documentation, for a run without data."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

PYDOC_TASK = "pydoc_qa"

PYDOC_NOTE = (
    "This is NOT LongBench: it is a small set of questions on Python's own documentation that "
    "this project wrote, run because no LongBench data were given (--data)."
)

_FULL_LINE = 50
"""Fewest characters of a line in a wrapped paragraph, except the last line."""


def pydoc_records() -> list[dict[str, Any]]:
    """Questions of this project on documents of the standard library's `pydoc_data.topics`.

    A question that this Python's documentation does not answer is left out, with a warning.
    """
    from pydoc_data.topics import topics

    path = Path(__file__).parent / "pydoc_qa.json"
    records = []
    for number, item in enumerate(json.loads(path.read_text(encoding="utf-8"))):
        document = unwrap(topics.get(item["topic"], ""))
        if item["answers"][0].lower() not in document.lower():
            logger.warning(
                "warning: left out, as this Python's documentation does not answer it: %s",
                item["question"],
            )
            continue
        records.append(
            {
                "_id": str(number),
                "input": item["question"],
                "context": document,
                "answers": item["answers"],
                "all_classes": [],
            }
        )
    return records


def unwrap(text: str) -> str:
    """Join the lines of each paragraph of prose. Code and tables are left as they are."""
    paragraphs = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.split("\n")
        same_indent = len({len(line) - len(line.lstrip()) for line in lines}) == 1
        full = all(len(line) >= _FULL_LINE for line in lines[:-1])
        if same_indent and full and lines[0].lstrip()[:1] not in {"+", "|", ">"}:
            joined = " ".join([lines[0], *(line.strip() for line in lines[1:])])
            block = re.sub(r"(?<=\w)- (?=\w)", "-", joined) if len(lines) > 1 else block
        paragraphs.append(block)
    return "\n\n".join(paragraphs)
