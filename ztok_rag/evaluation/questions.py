"""Arms, questions, and the records they come from."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ztok_rag.codec.prompts import QA_TEMPLATE
from ztok_rag.errors import DataError
from ztok_rag.evaluation.metrics import exact_match, token_f1

logger = logging.getLogger(__name__)

ARM_NAMES = ("none", "text", "text-reader", "ztok", "ztok-focus")
"""The arms that need nothing but a checkpoint."""

_WITHOUT_RATE = ("none", "text", "text-reader")

QUESTION_FIELDS: Mapping[str, type] = {"context": str, "question": str, "answers": list}
"""Fields of a record of SQuAD's kind, as `read_jsonl` requires them."""


class Shorten(ABC):
    """Makes a context as text out of the chunks retrieved for a question."""

    @abstractmethod
    def __call__(self, question: str, chunks: Sequence[str], budget: int) -> str:
        """A context of at most `budget` tokens."""

    def prepare(self, chunks: Sequence[str]) -> None:  # noqa: B027
        """Make what is kept of chunks before there is a question; nothing, if not overridden."""

    def stored_bytes(self, chunks: Sequence[str]) -> int:
        """Bytes of what is kept of chunks; their text, if not overridden."""
        return sum(utf8_bytes(chunk) for chunk in chunks)


def utf8_bytes(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text.encode("utf-8", "surrogatepass"))


@dataclass(frozen=True)
class Arm:
    """One way to give a model its context.

    Attributes:
        name: one of `ARM_NAMES`, or of the shortened raw text.
        rate: source tokens per context position: 1 for raw text, `None` for no context.
        adapter: the reader's adapter; `None` is the plain base LLM.
        shorten: makes the context out of the retrieved chunks, given the number of tokens that
            the rate allows.
    """

    name: str
    rate: float | None
    adapter: str | None
    shorten: Shorten | None = field(default=None, compare=False, repr=False)

    @property
    def reads_z_tokens(self) -> bool:
        """Whether its context is Z-tokens."""
        return self.name in ("ztok", "ztok-focus")

    @property
    def label(self) -> str:
        """The name, with the rate where there may be several."""
        if self.rate is None or self.name in _WITHOUT_RATE:
            return self.name
        return f"{self.name} {self.rate:g}x"


@dataclass(frozen=True)
class Question:
    """A question with its prompt around the context, and how an answer to it is scored.

    Attributes:
        id: unique within its task.
        before: prompt text before the context.
        after: prompt text after it.
        text: the question as a report shows it.
        answers: reference answers, as a report shows them.
        score: metric name to score, 0 to 1, of a prediction.
        gold: the paragraph known to hold the answer, if one is.
        chat: whether a plain base LLM that has a chat format is asked in it. Trained adapters
            never are.
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


def make_arms(
    names: Sequence[str],
    rates: Sequence[float],
    adapters: Sequence[str],
    shorteners: Mapping[str, Shorten] | None = None,
) -> list[Arm]:
    """The arms asked for, `ztok` and shortened text once per rate.

    An arm whose adapter the checkpoint lacks is left out, with a warning.

    Args:
        adapters: of the checkpoint.
        shorteners: further arms by name, whose shortened text the text reader reads.

    Raises:
        DataError: an unknown arm, a rate below 1, or no arm left.
    """
    shorteners = shorteners or {}
    known = ", ".join((*ARM_NAMES, *shorteners))
    distinct = list(dict.fromkeys(map(float, rates)))
    arms = []
    for name in dict.fromkeys(names):
        if name == "none":
            arms.append(Arm(name, None, "read"))
        elif name == "text":
            arms.append(Arm(name, 1.0, None))
        elif name in ("ztok", "ztok-focus"):
            arms += [Arm(name, rate, "read") for rate in distinct]
        elif name != "text-reader" and name not in shorteners:
            raise DataError(f"unknown arm {name!r}; the arms are {known}.")
        elif "text" not in adapters:
            logger.warning(
                "warning: the arm %s is left out: "
                "this checkpoint has no adapter trained on raw text.",
                name,
            )
        elif name == "text-reader":
            arms.append(Arm(name, 1.0, "text"))
        else:
            arms += [Arm(name, rate, "text", shorteners[name]) for rate in distinct]
    if bad := [rate for rate in rates if not rate >= 1]:
        raise DataError(f"a rate is at least 1 source token per Z-token, not {bad[0]:g}.")
    if not arms:
        raise DataError(f"no arm is left to run; the arms are {known}.")
    return arms


def make_question(
    task: str, number: int, record: Mapping[str, Any], max_new_tokens: int
) -> Question:
    """The question of a record of SQuAD's kind, scored by token F1 and exact match.

    Args:
        number: of the record in its file, from 0; the question's id.
        record: has the `QUESTION_FIELDS`; without a context, no paragraph is known to hold the
            answer.
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
    """Check that a record with the `QUESTION_FIELDS` has words in them.

    Raises:
        ValueError: the context or the question is empty.
    """
    for name in ("context", "question"):
        if not record[name].strip():
            raise ValueError(f"field {name!r} is empty")


def split_template(template: str, **fields: str) -> tuple[str, str]:
    """The texts before and after `{context}` in a format string, its other fields filled in.

    Raises:
        DataError: `{context}` is not there exactly once, or another field is not given.
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


def read_jsonl(
    path: Path,
    required: Mapping[str, type],
    check: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Records of a JSON Lines file, empty lines left out.

    Args:
        required: fields that each record must have, with their types; `list` means a non-empty
            list of strings.
        check: raises `ValueError` with the cause if a record is malformed in another way.

    Raises:
        DataError: the file cannot be read, or a record is malformed; names file, line, cause.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} ({error}); give a JSON Lines file.") from error
    records = []
    # Only "\n" ends a record: other line separators may stand inside JSON strings.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("it is not a JSON object")
            for name, kind in required.items():
                check_field(record, name, kind)
            if check is not None:
                check(record)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}.") from error
        records.append(record)
    if not records:
        raise DataError(f"{path} holds no records.")
    return records


def check_field(record: Mapping[str, Any], name: str, kind: type) -> None:
    """Check one field of a record, as the `required` of `read_jsonl` do.

    Raises:
        ValueError: the field is missing or of another type.
    """
    if name not in record:
        raise ValueError(f"field {name!r} is missing")
    value: Any = record[name]
    if not isinstance(value, kind):
        raise ValueError(f"field {name!r} is not a {kind.__name__}")
    if isinstance(value, list) and not (value and all(isinstance(item, str) for item in value)):
        raise ValueError(f"field {name!r} is not a non-empty list of strings")


def sample(items: Sequence[Any], limit: int | None, seed: int) -> list[Any]:
    """`limit` items in their own order, drawn so that a larger limit keeps those of a smaller."""
    if limit is None or limit >= len(items):
        return list(items)
    order = np.random.default_rng(seed).permutation(len(items))[:limit]
    return [items[i] for i in sorted(order)]
