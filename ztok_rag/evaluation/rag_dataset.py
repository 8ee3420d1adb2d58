"""Question sets in the file format of LlamaIndex's `LabelledRagDataset`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ztok_rag.codec.serialization import write_atomic
from ztok_rag.errors import DataError
from ztok_rag.jsonl import check_field

_FIELDS: Mapping[str, type] = {"query": str, "reference_contexts": list, "reference_answer": str}


def read_rag_dataset(path: str | Path) -> list[dict[str, Any]]:
    """Records of `{context, question, answers}` from what `LabelledRagDataset.save_json` wrote.

    The reference contexts of an example are joined with blank lines.

    Raises:
        DataError: the file cannot be read or has another format. The message names the example.
    """
    path = Path(path)
    try:
        examples = json.loads(path.read_text(encoding="utf-8"))["examples"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"cannot read {path} as a LabelledRagDataset ({error}); "
            "give a file that its save_json wrote, or JSON Lines."
        ) from error
    records = []
    for number, example in enumerate(examples):
        try:
            for name, kind in _FIELDS.items():
                check_field(example, name, kind)
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}, example {number}: {error}.") from error
        records.append(
            {
                "context": "\n\n".join(example["reference_contexts"]),
                "question": example["query"],
                "answers": [example["reference_answer"]],
            }
        )
    if not records:
        raise DataError(f"{path} holds no examples.")
    return records


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
