"""The examples run, and say what they should."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run(tmp_path: Path):  # type: ignore[no-untyped-def]
    """Runs an example in a cache folder of its own, the base LLM apart; returns its output."""
    from ztok_rag.base import cache_dir, default_base_path

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
    assert run("quickstart.py").strip()


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
