"""Files of questions and files of texts, on which a checkpoint is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ztok_rag.errors import DataError
from ztok_rag.evaluation.questions import QUESTION_FIELDS, check_question
from ztok_rag.files import is_pipe, show
from ztok_rag.jsonl import OddRecords, check_field, read_jsonl

QA = "qa"

RECONSTRUCTION = "reconstruction"

WRITING = "writing"

TASK_NAMES = (QA, RECONSTRUCTION, WRITING)

DEFAULT_TASKS = (QA, RECONSTRUCTION)
"""Those that are run unless others are named."""


@dataclass(frozen=True)
class Dataset:
    """The records of one file: all questions, or all texts.

    Attributes:
        name: folder and file name, as shown in results.
        records: `{context, question, answers}` if `has_questions`, else `{text}`.
        has_questions: whether the records are questions.
        tasks: the tasks to run, of `TASK_NAMES`.
    """

    name: str
    path: Path
    records: list[dict[str, Any]]
    has_questions: bool
    tasks: tuple[str, ...]

    @property
    def texts(self) -> list[str]:
        """The text of each record; of a question, its context."""
        field = "context" if self.has_questions else "text"
        return [record[field] for record in self.records]


def read_datasets(
    paths: Sequence[Path], tasks: Sequence[str] | None = None, odd: OddRecords | None = None
) -> list[Dataset]:
    """Read files of questions and files of texts. A file given twice is read once.

    Args:
        paths: JSON Lines of `{context, question, answers}` or of `{text}`.
        tasks: the tasks to run, of `TASK_NAMES`; `None` is those of `DEFAULT_TASKS` that a file's
            records allow.
        odd: gets the odd records, which are left out; `None` makes them errors.

    Raises:
        DataError: a task is unknown, a file cannot be read or fits none of the tasks, or a record
            is malformed or of another form than the first of its file. The message names the
            file, the line and the cause.
    """
    wanted = DEFAULT_TASKS if tasks is None else tuple(dict.fromkeys(tasks))
    if unknown := [task for task in wanted if task not in TASK_NAMES]:
        raise DataError(f"unknown task {unknown[0]!r}; the tasks are {', '.join(TASK_NAMES)}.")
    if not wanted:
        raise DataError(f"there is no task to run; the tasks are {', '.join(TASK_NAMES)}.")
    different = list({path if is_pipe(path) else path.resolve(): path for path in paths}.values())
    return [
        _read_dataset(path, name, wanted, odd)
        for path, name in zip(different, short_names(different), strict=True)
    ]


def short_names(paths: Sequence[Path]) -> list[str]:
    """Folder and file name of each path, or all of it where others have them, too.

    Pipes are numbered: their own names are others in the next run.
    """
    pipes = [path for path in paths if is_pipe(path)]
    short = {
        path: f"pipe {pipes.index(path) + 1}"
        if path in pipes
        else show(f"{path.resolve().parent.name}/{path.stem}")
        for path in paths
    }
    names = list(short.values())
    return [
        short[path] if names.count(short[path]) == 1 else show(path.resolve()) for path in paths
    ]


def _read_dataset(path: Path, name: str, wanted: Sequence[str], odd: OddRecords | None) -> Dataset:
    shape = _Shape()
    records = read_jsonl(path, check=shape.check, odd=odd)
    has_questions = bool(shape.has_questions)
    tasks = tuple(task for task in wanted if has_questions or task != QA)
    if not tasks:
        raise DataError(
            f"{show(path)} holds texts without questions, of which --tasks {QA} makes no use; "
            f"leave the file out or add {RECONSTRUCTION} to --tasks."
        )
    return Dataset(name, path, records, has_questions, tasks)


class _Shape:
    """Checks that all records of a file have the form of the first: question or text."""

    def __init__(self) -> None:
        self.has_questions: bool | None = None

    def check(self, record: Mapping[str, Any]) -> None:
        """Check a record.

        Raises:
            ValueError: it is malformed or of the other form.
        """
        asks = "question" in record
        if not asks and "text" not in record:
            raise ValueError(
                "it has neither a 'text' nor a 'question' with 'context' and 'answers'"
            )
        if self.has_questions not in (None, asks):
            raise ValueError(
                f"it has {'a' if asks else 'no'} 'question', unlike the file's first record; "
                "keep questions and texts in files of their own"
            )
        if asks:
            for name, kind in QUESTION_FIELDS.items():
                check_field(record, name, kind)
            check_question(record)
        else:
            check_field(record, "text", str)
            if not record["text"].strip():
                raise ValueError("field 'text' is empty")
        self.has_questions = asks
