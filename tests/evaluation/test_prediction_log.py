"""The log of answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from ztok_rag.errors import DataError
from ztok_rag.evaluation import PredictionLog


def test_a_damaged_log_line_is_named(tmp_path: Path) -> None:
    PredictionLog(tmp_path, {"k": 1}).close()
    (tmp_path / "predictions.jsonl").write_text("nonsense\n")
    with pytest.raises(DataError, match=r"line 1: .* Delete that line"):
        PredictionLog(tmp_path, {"k": 1})
