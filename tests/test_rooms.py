"""The packages of `ztok_rag` build on one another in one direction only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ztok_rag"

BESIDE = {"errors", "files", "forks", "inputs", "jsonl"}
"""Files beside the rooms, which all may import."""

# What the files of each room may import, besides their own room and those beside the rooms.
BELOW = {
    "codec": set(),
    "storage": {"codec"},
    "selection": {"codec", "storage"},
    "training": {"codec", "storage", "selection"},
    "evaluation": {"codec", "storage", "selection"},
    "llamaindex": {"codec", "storage", "selection"},
    "index": {"codec", "storage", "selection", "llamaindex"},
    "serving": {"codec", "storage", "selection", "llamaindex", "index"},
    "view": {"codec", "evaluation"},
    "cli": {
        *("codec", "storage", "selection", "training", "evaluation", "llamaindex", "index"),
        *("serving", "view"),
    },
}
LLAMA_INDEX = {"llamaindex", "index", "serving", "cli"}
PEFT = {"codec"}


def imported(source: str) -> Iterator[str]:
    """Dotted names that a file imports, anywhere in it, `from a import b` as `a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{a.name}" for a in node.names)


def complaints(room: str, source: str) -> list[str]:
    """The imports of a file in `room` that it may not have."""
    allowed = BELOW[room] | BESIDE | {room}
    found = []
    for name in imported(source):
        top, _, rest = name.partition(".")
        wrong = {
            "": True,  # relative: which room it reaches cannot be read off it
            "ztok_rag": rest.partition(".")[0] not in allowed,
            "llama_index": room not in LLAMA_INDEX,
            "peft": room not in PEFT,
        }
        if wrong.get(top, False):
            found.append(name)
    return found


def test_rooms_are_those_there_are() -> None:
    rooms = {p.name for p in PACKAGE.iterdir() if (p / "__init__.py").is_file()}
    assert rooms == set(BELOW)
    assert {p.stem for p in PACKAGE.glob("*.py")} == BESIDE | {"__init__"}
    # One direction: what a room may import may not import it.
    assert not [(a, b) for a, below in BELOW.items() for b in below if a in BELOW[b]]


@pytest.mark.parametrize("room", BELOW)
def test_imports_go_one_way(room: str) -> None:
    files = sorted((PACKAGE / room).rglob("*.py"))
    found = {f.name: complaints(room, f.read_text(encoding="utf-8")) for f in files}
    assert files and {name: wrong for name, wrong in found.items() if wrong} == {}


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("codec", "from ztok_rag.selection.query_aware import QueryAwareSelector"),
        ("codec", "from ztok_rag import ZStore"),
        ("selection", "def f():\n    import llama_index.core"),
        ("storage", "from ..selection import query_aware"),
        ("training", "from ztok_rag.evaluation import metrics"),
        ("llamaindex", "from peft import LoraConfig"),
    ],
)
def test_a_wrong_import_is_found(room: str, line: str) -> None:
    assert len(complaints(room, line)) == 1
    assert complaints(room, "import numpy\nfrom ztok_rag.errors import ZtokError") == []
