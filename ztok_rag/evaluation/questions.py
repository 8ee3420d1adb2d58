"""Questions, and the records from which they are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ztok_rag.codec.prompts import QA_TEMPLATE
from ztok_rag.errors import DataError
from ztok_rag.evaluation.metrics import exact_match, token_f1

QUESTION_FIELDS: Mapping[str, type] = {"context": str, "question": str, "answers": list}
"""Fields of a record in the form of SQuAD (arXiv 1606.05250), for `read_jsonl`."""


@dataclass(frozen=True)
class Question:
    """A question, the prompt around its context, and how an answer is scored.

    Attributes:
        id: unique within its task.
        task: name of the data set.
        before: prompt text before the context.
        after: prompt text after it.
        text: the question itself, for retrieval and reports.
        answers: reference answers.
        max_new_tokens: longest answer, in tokens.
        score: takes a prediction; returns scores, 0 to 1, by metric.
        gold: the paragraph that is known to contain the answer, if any.
        chat: ask the plain base LLM in its chat format, if it has one. The trained reader is
            never asked in it.
        min_new_tokens: shortest answer, in tokens.
        summary: a summary is asked for; the prompt has no question to read before the context.
    """

    id: str
    task: str
    before: str
    after: str
    text: str
    answers: tuple[str, ...]
    max_new_tokens: int
    score: Callable[[str], Mapping[str, float]] = field(repr=False)
    gold: str | None = field(default=None, repr=False)
    chat: bool = True
    min_new_tokens: int = 1
    summary: bool = False


def make_question(
    task: str, number: int, record: Mapping[str, Any], max_new_tokens: int
) -> Question:
    """Make a question of a record, scored by token F1 and exact match.

    Args:
        task: name of the data set.
        number: index of the record in its file, from 0; becomes the question's id.
        record: has the `QUESTION_FIELDS`. `context` may be missing; then `gold` is `None`.
        max_new_tokens: longest answer, in tokens.
    """
    before, after = split_template(QA_TEMPLATE, question=record["question"])
    answers = record["answers"]

    def score(prediction: str) -> dict[str, float]:
        return {
            "f1": token_f1(prediction, answers),
            "exact_match": exact_match(prediction, answers),
        }

    return Question(
        id=str(number),
        task=task,
        before=before,
        after=after,
        text=record["question"],
        answers=tuple(answers),
        max_new_tokens=max_new_tokens,
        score=score,
        gold=record.get("context"),
    )


def check_question(record: Mapping[str, Any]) -> None:
    """Check that the context and the question of a record are not empty.

    Raises:
        ValueError: one of them is empty.
    """
    for name in ("context", "question"):
        if not record[name].strip():
            raise ValueError(f"field {name!r} is empty")


def split_template(template: str, **fields: str) -> tuple[str, str]:
    """Split a prompt template at `{context}`, and fill in its other fields.

    Raises:
        DataError: `{context}` is not in it exactly once, or a value for another field is missing.
    """
    parts = template.split("{context}")
    if len(parts) != 2:
        raise DataError("a prompt template must hold {context} exactly once.")
    try:
        before, after = (part.format(**fields) for part in parts)
    except (KeyError, IndexError, ValueError) as error:
        raise DataError(
            f"a prompt template has a field that is not one of {', '.join(fields)} ({error})."
        ) from error
    return before, after


def sample(items: Sequence[Any], limit: int | None, seed: int) -> list[Any]:
    """Draw at most `limit` items, in their own order. A larger limit adds to a smaller one's."""
    if limit is None or limit >= len(items):
        return list(items)
    order = np.random.default_rng(seed).permutation(len(items))[:limit]
    return [items[i] for i in sorted(order)]
