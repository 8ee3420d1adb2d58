"""Question sets in the file format of LlamaIndex's `LabelledRagDataset`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ztok_rag.codec.serialization import write_atomic
from ztok_rag.errors import DataError
from ztok_rag.files import read_text, show
from ztok_rag.jsonl import OddRecords, check_field, check_strings

_FIELDS: Mapping[str, type] = {"query": str, "reference_contexts": list, "reference_answer": str}


def read_rag_dataset(path: str | Path, odd: OddRecords | None = None) -> list[dict[str, Any]]:
    """Records of `{context, question, answers}` from what `LabelledRagDataset.save_json` wrote.

    The reference contexts of an example are joined with blank lines.

    Args:
        path: the file; it may be a pipe.
        odd: gets the odd examples, which are left out; `None` makes them errors.

    Raises:
        DataError: the file cannot be read or has another format. The message names the example.
    """
    text = read_text(path)
    try:
        examples = json.loads(text)["examples"]
        if not isinstance(examples, list):
            raise TypeError("'examples' is not a list")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"cannot read {show(path)} as a LabelledRagDataset ({error}); "
            "give a file that its save_json wrote, or JSON Lines."
        ) from error
    records = []
    for number, example in enumerate(examples):
        try:
            records.append(_record(example))
        except ValueError as error:
            message = f"{show(path)}, example {number}: {error}"
            if odd is None:
                raise DataError(f"{message}.") from error
            odd.found.append(message)
    if not records:
        raise DataError(f"{show(path)} holds no examples.")
    return records


def _record(example: Any) -> dict[str, Any]:
    """The record of an example.

    Raises:
        ValueError: it is malformed.
    """
    if not isinstance(example, dict):
        raise ValueError("it is not a JSON object")
    for name, kind in _FIELDS.items():
        check_field(example, name, kind)
    check_strings(example)
    return {
        "context": "\n\n".join(example["reference_contexts"]),
        "question": example["query"],
        "answers": [example["reference_answer"]],
    }


def write_rag_dataset(records: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write records of `{context, question, answers}` in the format of `LabelledRagDataset`.

    The first answer becomes the reference.
    """
    human = {"model_name": "", "type": "human"}
    examples = [
        {
            "query": record["question"],
            "query_by": human,
            "reference_contexts": [record["context"]],
            "reference_answer": record["answers"][0],
            "reference_answer_by": human,
        }
        for record in records
    ]
    write_atomic(Path(path), json.dumps({"examples": examples}, ensure_ascii=False).encode())
