"""The examples run, and say what they should."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ztok_rag import CheckpointError

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Runs an example in a cache folder of its own, the base LLM apart; returns its output."""
    from ztok_rag.codec.base import cache_dir, default_base_path

    default_base_path()
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "base").symlink_to(cache_dir() / "base")

    def run(name: str, *arguments: str) -> str:
        result = subprocess.run(
            [sys.executable, str(EXAMPLES / name), *arguments],
            env={**os.environ, "ZTOK_CACHE": str(cache), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


def test_quickstart(run) -> None:  # type: ignore[no-untyped-def]
    assert "Tobias Finch" in run("quickstart.py")


def test_existing_index(run) -> None:  # type: ignore[no-untyped-def]
    output = run("existing_index.py")
    assert "read from: The lighthouse" in output
    assert "compressed for this query: 0 chunks" in output


def test_chat_over_folder(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "lighthouse.txt").write_text("The lighthouse was built in 1871 by Ada Merrow.")
    output = run("chat_over_folder.py", str(folder), "In what year was the lighthouse built?")
    assert "1871" in output


def test_evaluate(run) -> None:  # type: ignore[no-untyped-def]
    output = run("evaluate.py")
    assert "text-reader" in output and "ztok" in output


def test_notebook(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    path = EXAMPLES / "z_tokens_in_pictures.ipynb"
    assert path.stat().st_size < 500_000
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    # It is kept as it was executed, from top to bottom and without errors.
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    script = tmp_path / "cells.py"
    script.write_text("\n".join("".join(cell["source"]) for cell in cells), encoding="utf-8")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    output = run(str(script))
    assert "Who tied forty kites" in output and "festival: Every September" in output


def test_custom_base(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from ztok_rag import ZReader
    from ztok_rag.codec.base import BaseLM

    output = run("custom_base.py", "--output", str(tmp_path / "run"))
    found = re.search(r"as (\d+) Z-tokens for (\d+) tokens of checkpoint (\w+)", output)
    assert found and "read from: The lighthouse on Brannock Point" in output
    assert int(found[1]) < int(found[2]) / 3
    # The checkpoint is of the base that was given, and refuses any other.
    with pytest.raises(CheckpointError, match="does not fit"):
        ZReader.from_pretrained(tmp_path / "run" / "checkpoint", base=BaseLM.load(device="cpu"))
