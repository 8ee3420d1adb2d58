"""Scores of arms and paired comparisons."""

from __future__ import annotations

from pathlib import Path

import pytest

from ztok_rag.evaluation import Arm, PredictionLog, make_question, paired_share

RECORDS = [
    {"question": "When was the mill built?", "answers": ["1902", "in 1902"]},
    {"question": "Where is the mill?", "answers": ["Reed Lane"]},
    {"question": "When does the ferry leave?", "answers": ["nine"]},
]


def test_share_is_the_ratio_of_the_means(tmp_path: Path) -> None:
    predictions = {"text-reader": ["1902", "Reed Lane", "noon"], "ztok": ["1902", "a hill", "noon"]}
    arms = {"text-reader": Arm("text-reader", 1.0, "read"), "ztok": Arm("ztok", 4.0, "read")}
    questions = [make_question("t", i, record, 4) for i, record in enumerate(RECORDS)]
    log = PredictionLog(tmp_path, {})
    costs = {"context_tokens": 1, "source_tokens": 4, "stored_bytes": 8, "truncated": False}
    for name, texts in predictions.items():
        for number, text in enumerate(texts):
            key = {"task": "t", "arm": name, "rate": arms[name].rate, "id": str(number)}
            log.append([{**key, **costs, "prediction": text}])
    log.close()

    ours, theirs = arms["ztok"], arms["text-reader"]
    row = paired_share(questions, ours, theirs, log, "f1", benchmark="qa", k=1)
    assert row is not None
    assert (row.metric, row.n, row.ci95) == ("share_of_text_reader", 3, (0, 100))
    assert row.score == pytest.approx(50)
    assert paired_share(questions[2:], ours, theirs, log, "f1", benchmark="qa", k=1) is None
