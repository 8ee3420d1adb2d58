"""The tasks, and how their answers are scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ztok_rag.evaluation import Question, metrics, split_template

Metric = Callable[[str, Sequence[str], Sequence[str]], float]
"""Takes a prediction, its reference answers and the class names; returns a score, 0 to 1."""

QUALITY = "quality"
"""Multiple-choice questions on stories (arXiv 2112.08608); not a task of LongBench."""


@dataclass(frozen=True)
class TaskKind:
    """How the answers of a task are scored.

    Attributes:
        metric: name of the score in the results.
        score: the metric.
        first_line: score only the first line of a prediction.
        chat: ask a chat model in its chat format.
        summary: a summary is asked for.
        min_new_tokens: shortest answer, in tokens.
    """

    metric: str
    score: Metric
    first_line: bool = False
    chat: bool = True
    summary: bool = False
    min_new_tokens: int = 1


def _plain(metric: Callable[[str, Sequence[str]], float]) -> Metric:
    return lambda prediction, answers, classes: metric(prediction, answers)


_F1 = TaskKind("f1", _plain(metrics.token_f1))

_ROUGE = TaskKind("rouge_l", _plain(metrics.rouge_l_union), summary=True)
_PAGE = replace(_ROUGE, min_new_tokens=128)  # the prompts ask for a summary of one page

_CODE = TaskKind("edit_similarity", _plain(metrics.edit_similarity), chat=False)

LONGBENCH: dict[str, TaskKind] = {
    "narrativeqa": _F1,
    "qasper": _F1,
    "multifieldqa_en": _F1,
    "hotpotqa": _F1,
    "2wikimqa": _F1,
    "musique": _F1,
    "gov_report": _PAGE,
    "qmsum": _ROUGE,
    "multi_news": _PAGE,
    "trec": TaskKind("classification", metrics.classification, first_line=True, chat=False),
    "triviaqa": TaskKind("f1", _plain(metrics.token_f1), first_line=True, chat=False),
    "samsum": TaskKind(
        "rouge_l", _plain(metrics.rouge_l_union), first_line=True, chat=False, summary=True
    ),
    "passage_count": TaskKind("count", _plain(metrics.count)),
    "passage_retrieval_en": TaskKind("retrieval", _plain(metrics.retrieval)),
    "lcc": _CODE,
    "repobench-p": _CODE,
}

TASKS = {**LONGBENCH, QUALITY: TaskKind("choice", metrics.choice)}


def make_question(
    task: str, record: Mapping[str, Any], template: str, max_new_tokens: int
) -> Question:
    """Make a question of a record.

    White space at the end of the context is moved to the prompt after the context.
    """
    before, after = split_template(template, input=record["input"])
    context = record["context"]
    answers, classes = record["answers"], record["all_classes"]
    kind = TASKS.get(task, _F1)

    def score(prediction: str) -> dict[str, float]:
        if kind.first_line:
            prediction = metrics.first_line(prediction)
        return {kind.metric: kind.score(prediction, answers, classes)}

    return Question(
        id=record["_id"],
        task=task,
        before=before,
        after=context[len(context.rstrip()) :] + after,
        text=record["input"] or f"{before} … {after}",
        answers=tuple(answers),
        max_new_tokens=max_new_tokens,
        score=score,
        chat=kind.chat,
        summary=kind.summary,
        min_new_tokens=min(kind.min_new_tokens, max_new_tokens),
    )
