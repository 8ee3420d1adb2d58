"""`results.json`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ztok_rag.evaluation import write_results


def test_results_hold_the_command_without_folders_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ZTOK_DTYPE", raising=False)
    for program, written in (
        ("/opt/bin/ztok", "ztok"),
        ("/opt/ztok_rag/cli/__main__.py", "ztok"),
        ("benchmarks/a.py", "benchmarks/a.py"),
    ):
        monkeypatch.setattr(sys, "argv", [program, "eval", "a file"])
        results = write_results(tmp_path, [], seed=0, checkpoint="default", device="cpu")
        assert results["command"] == f"{written} eval 'a file'"
    monkeypatch.setenv("ZTOK_DTYPE", "float32")
    results = write_results(tmp_path, [], seed=0, checkpoint="default", device="cpu")
    assert results["command"] == "ZTOK_DTYPE=float32 benchmarks/a.py eval 'a file'"
