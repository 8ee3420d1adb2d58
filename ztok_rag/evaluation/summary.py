"""Rows of results from the log of answers: scores and costs of arms, and paired comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ztok_rag.errors import DataError
from ztok_rag.evaluation.arms import Arm
from ztok_rag.evaluation.intervals import bootstrap_ci, ratio
from ztok_rag.evaluation.log import PredictionLog
from ztok_rag.evaluation.questions import Question
from ztok_rag.evaluation.rows import COST_FIELDS, Row


def summarize(
    benchmark: str,
    tasks: Mapping[str, Sequence[Question]],
    arms: Sequence[Arm],
    log: PredictionLog,
    *,
    k: int,
    seed: int = 0,
) -> list[Row]:
    """A row per task, arm and metric, and the mean over tasks if there are several.

    Raises:
        DataError: an answer is missing in the log.
    """
    rows = []
    for arm in arms:
        groups: list[list[float]] = []
        means: list[Row] = []
        for task, questions in tasks.items():
            records = _records(questions, arm, log)
            for index, (metric, scores) in enumerate(_scores(questions, records).items()):
                row = Row(
                    benchmark=benchmark,
                    task=task,
                    arm=arm.name,
                    rate=arm.rate,
                    k=k if arm.rate is not None else 0,
                    metric=metric,
                    score=float(np.mean(scores)),
                    ci95=bootstrap_ci(scores, seed=seed),
                    n=len(scores),
                    **_costs(records),
                )
                rows.append(row)
                if index == 0:
                    groups.append(scores)
                    means.append(row)
        if len(tasks) > 1:
            rows.append(_mean_row(means, bootstrap_ci(*groups, seed=seed)))
    return rows


def paired_difference(
    questions: Sequence[Question],
    arm: Arm,
    other: Arm,
    log: PredictionLog,
    metric: str,
    *,
    benchmark: str,
    k: int,
    seed: int = 0,
) -> Row:
    """The difference in score of two arms on the same questions."""
    records = _records(questions, arm, log)
    differences = _differences(questions, arm, other, log, metric)
    return Row(
        benchmark=benchmark,
        task=questions[0].task,
        arm=arm.name,
        rate=arm.rate,
        k=k,
        metric=f"{metric}_minus_{other.name}",
        score=float(np.mean(differences)),
        ci95=bootstrap_ci(differences, seed=seed),
        n=len(differences),
        **_costs(records),
    )


def paired_differences(
    tasks: Mapping[str, Sequence[Question]],
    arm: Arm,
    other: Arm,
    log: PredictionLog,
    *,
    benchmark: str,
    k: int,
    seed: int = 0,
) -> list[Row]:
    """The `paired_difference` of each task in its first metric, and the mean over tasks."""
    rows, groups = [], []
    for questions in tasks.values():
        metric = next(iter(_scores(questions[:1], _records(questions[:1], arm, log))))
        rows.append(
            paired_difference(
                questions, arm, other, log, metric, benchmark=benchmark, k=k, seed=seed
            )
        )
        groups.append(_differences(questions, arm, other, log, metric))
    if len(tasks) > 1:
        mean = _mean_row(rows, bootstrap_ci(*groups, seed=seed))
        rows.append(replace(mean, metric=f"mean_minus_{other.name}"))
    return rows


def _differences(
    questions: Sequence[Question], arm: Arm, other: Arm, log: PredictionLog, metric: str
) -> list[float]:
    """The difference in score of two arms, by question."""
    ours = _scores(questions, _records(questions, arm, log))[metric]
    theirs = _scores(questions, _records(questions, other, log))[metric]
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def paired_share(
    questions: Sequence[Question],
    arm: Arm,
    other: Arm,
    log: PredictionLog,
    metric: str,
    *,
    benchmark: str,
    k: int,
    seed: int = 0,
) -> Row | None:
    """The mean score of `arm` in per cent of that of `other` on the same questions.

    The interval is that of the ratio of the means, with questions resampled in pairs. Returns
    `None` if `other` scores 0.
    """
    records = _records(questions, arm, log)
    ours = _scores(questions, records)[metric]
    theirs = _scores(questions, _records(questions, other, log))[metric]
    if not any(theirs):
        return None
    pairs = np.stack([ours, theirs], axis=1)
    low, high = bootstrap_ci(pairs, seed=seed, statistic=ratio)
    return Row(
        benchmark=benchmark,
        task=questions[0].task,
        arm=arm.name,
        rate=arm.rate,
        k=k,
        metric=f"share_of_{other.name}".replace("-", "_"),
        score=float(100 * np.mean(ours) / np.mean(theirs)),
        ci95=(100 * low, 100 * high),
        n=len(ours),
        **_costs(records),
    )


def _records(questions: Sequence[Question], arm: Arm, log: PredictionLog) -> list[dict[str, Any]]:
    records = []
    for question in questions:
        record = log.get(question, arm)
        if record is None:
            raise DataError(f"{log.path} lacks question {question.id}; run the same command again.")
        records.append(record)
    return records


def _scores(
    questions: Sequence[Question], records: Sequence[Mapping[str, Any]]
) -> dict[str, list[float]]:
    """Scores by metric, 0 to 100, computed from the predictions."""
    scores: dict[str, list[float]] = {}
    for question, record in zip(questions, records, strict=True):
        for name, value in question.score(record["prediction"]).items():
            scores.setdefault(name, []).append(100 * value)
    return scores


_OPTIONAL_COSTS = ("gold_retrieved", "shorten_ms", "postprocess_ms", "look_ms")
"""Fields that the records of some arms have; a row holds their mean."""


def _costs(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The cost fields of a row."""

    def mean(name: str) -> float | None:
        values = [record[name] for record in records if name in record]
        return float(np.mean(values)) if values else None

    positions = sum(record["context_tokens"] for record in records)
    tokens = sum(record["source_tokens"] for record in records)
    stored = sum(record["stored_bytes"] for record in records)
    z_tokens = sum(record.get("z_tokens", 0) for record in records)
    return {
        "context_tokens": mean("context_tokens"),
        "bytes_per_source_token": stored / tokens if tokens else None,
        "prefill_ms": mean("prefill_ms"),
        "ttft_ms": mean("ttft_ms"),
        "kv_bytes": mean("kv_bytes"),
        "source_tokens": mean("source_tokens"),
        "source_tokens_per_position": tokens / positions if positions else None,
        "real_rate": tokens / z_tokens if z_tokens else None,
        "truncated": sum(record["truncated"] for record in records),
        "measured": sum("prefill_ms" in record for record in records),
        **{name: mean(name) for name in _OPTIONAL_COSTS},
    }


def _mean_row(rows: Sequence[Row], interval: tuple[float, float]) -> Row:
    """The mean over tasks of one arm, with equal weights."""

    def mean(name: str) -> float | None:
        values = [getattr(row, name) for row in rows]
        return None if None in values else float(np.mean(values))

    first = rows[0]
    costs: dict[str, Any] = {
        name: mean(name) for name in (*COST_FIELDS, "real_rate", *_OPTIONAL_COSTS)
    }
    return Row(
        benchmark=first.benchmark,
        task="average",
        arm=first.arm,
        rate=first.rate,
        k=first.k,
        metric="mean",
        score=float(np.mean([row.score for row in rows])),
        ci95=interval,
        n=sum(row.n for row in rows),
        truncated=sum(row.truncated or 0 for row in rows),
        **costs,
    )
