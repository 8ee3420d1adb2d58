"""Read the records of a task, its prompt template and the length of its answers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tasks.kinds import QUALITY, TASKS
from ztok_rag.codec.prompts import QA_TEMPLATE
from ztok_rag.errors import DataError
from ztok_rag.files import read_text, show
from ztok_rag.jsonl import OddRecords, read_jsonl

CONFIG = ("dataset2prompt.json", "dataset2maxlen.json")

_QUALITY_PROMPT = QA_TEMPLATE.replace("{question}", "{input}")

_QUALITY_LENGTH = 48

_OPTION = re.compile(r"^\s*(\([A-Z]\) .*?)(?=\n\s*\([A-Z]\) |\Z)", re.DOTALL | re.MULTILINE)


def load_task(folder: Path, task: str, odd: OddRecords | None = None) -> list[dict[str, Any]]:
    """Read the records of a task. A missing or repeated `_id` is replaced by a unique one.

    Args:
        folder: of the files.
        task: its name.
        odd: gets the odd records, which are left out; `None` makes them errors.

    Raises:
        DataError: the file is missing, or a record is malformed.
    """
    path = task_file(folder, task)
    if not path.exists():
        raise DataError(
            f"{show(path)} does not exist; give a folder with the files of all --tasks."
        )
    if task == QUALITY:
        return _load_quality(path, odd)
    records = read_jsonl(
        path,
        {"input": str, "context": str, "answers": list},
        partial(_check_record, TASKS[task].metric),
        odd=odd,
    )
    seen: set[str] = set()
    for number, record in enumerate(records):
        name = str(record.get("_id") or number)
        record["_id"] = name if name not in seen else f"{name}#{number}"
        seen.add(record["_id"])
        record["all_classes"] = record.get("all_classes") or []
    return records


def task_file(folder: Path, task: str) -> Path:
    """The file of a task. QuALITY is read in the format of L-Eval (arXiv 2307.11088)."""
    return folder / ("leval_quality.jsonl" if task == QUALITY else f"{task}.jsonl")


def _check_record(metric: str, record: Mapping[str, Any]) -> None:
    if not record["context"].strip():
        raise ValueError("the context is empty")
    classes = record.get("all_classes")
    if metric == "classification" and not (isinstance(classes, list) and classes):
        raise ValueError("field 'all_classes' is not a non-empty list")
    if metric == "retrieval" and not all(
        re.search(r"Paragraph \d+", answer) for answer in record["answers"]
    ):
        raise ValueError("an answer is not of the form 'Paragraph 7'")


def _load_quality(path: Path, odd: OddRecords | None) -> list[dict[str, Any]]:
    """Read L-Eval's QuALITY: one record per question, with its options as class names."""
    documents = read_jsonl(path, {"id": str, "document": str}, _check_quality, odd=odd)
    records = []
    for document in documents:
        for number, asked in enumerate(document["questions"]):
            text, answer = asked["question"], asked["answer"]
            options = _options(text)
            records.append(
                {
                    "_id": f"{document['id']}#{number}",
                    "input": text,
                    "context": document["document"],
                    "answers": _with_letter_of(answer, options),
                    "all_classes": options,
                }
            )
    return records


def _options(question: str) -> list[str]:
    return [found.strip() for found in _OPTION.findall(question)]


def _with_letter_of(answer: str, options: Sequence[str]) -> list[str]:
    return [option for option in options if option[:3] == answer.strip()[:3]]


def _check_quality(record: Mapping[str, Any]) -> None:
    questions = record.get("questions")
    for asked in questions if questions and isinstance(questions, list) else [{}]:
        if not isinstance(asked, dict) or not all(
            isinstance(asked.get(name), str) for name in ("question", "answer")
        ):
            raise ValueError("field 'questions' is not a list of {question, answer}")
        if not _with_letter_of(asked["answer"], _options(asked["question"])):
            raise ValueError(f"the answer {asked['answer']!r} is not among its question's options")


def load_config(
    folder: Path, templates: Path | None, tasks: Sequence[str]
) -> tuple[dict[str, str], dict[str, int]]:
    """Read the prompt templates and the answer lengths, in tokens, by task.

    Args:
        folder: holds `dataset2prompt.json` and `dataset2maxlen.json`.
        templates: a file to read instead of `dataset2prompt.json`.
        tasks: those that must be in both.

    Raises:
        DataError: a file is missing or malformed, or lacks a task.
    """
    prompts, lengths = {}, {}
    if QUALITY in tasks:
        prompts[QUALITY], lengths[QUALITY] = _QUALITY_PROMPT, _QUALITY_LENGTH
    if own := [task for task in tasks if task != QUALITY]:
        prompts |= _load_json(templates or folder / CONFIG[0], str, own)
        lengths |= _load_json(folder / CONFIG[1], int, own)
    return prompts, lengths


def _load_json(path: Path, kind: type, tasks: Sequence[str]) -> dict[str, Any]:
    try:
        values = json.loads(read_text(path))
    except DataError as error:
        raise DataError(
            f"{error} LongBench's {path.name} belongs beside its TASK.jsonl files (or give "
            "--templates FILE)."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{show(path)} is not JSON ({error}).") from error
    for task in tasks:
        if not isinstance(values, dict) or not isinstance(values.get(task), kind):
            raise DataError(
                f"{show(path)} has no entry of type {kind.__name__} for the task {task}."
            )
    return dict(values)
