"""The log of predictions, from which an interrupted evaluation resumes, and its digests."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ztok_rag.codec.serialization import write_atomic
from ztok_rag.errors import DataError
from ztok_rag.evaluation.arms import Arm
from ztok_rag.evaluation.questions import Question
from ztok_rag.files import show
from ztok_rag.jsonl import read_jsonl

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor


class PredictionLog:
    """The answers of a run, in `predictions.jsonl` of its output folder.

    A line is one answer, by one arm, from one number of retrieved chunks. Answers that are in the
    file when it is opened are not computed again. A half-written last line is dropped.

    Attributes:
        path: of the file.
        k: number of retrieved chunks of the answers that `get` and `append` are about.
        records: all answers.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open the log in `folder`, or start one.

        Args:
            folder: made if it does not exist.
            settings: everything that decides a prediction; kept in `settings.json`.

        Raises:
            DataError: the folder holds a run with other settings, or the log is damaged.
        """
        self.path = folder / "predictions.jsonl"
        self.k = 1
        self.records: dict[tuple[str, str, float | None, int, str], dict[str, Any]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._check_settings(folder / "settings.json", dict(settings))
            if self.path.exists():
                self._load()
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise DataError(
                f"cannot write to {show(folder)} ({error.strerror}); give another --output."
            ) from error

    def _check_settings(self, path: Path, settings: dict[str, Any]) -> None:
        settings = json.loads(json.dumps(settings))
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if self.path.exists():
                raise DataError(
                    f"{self.path} has no settings.json beside it, so it cannot be resumed; "
                    "give another --output or delete it."
                ) from None
            write_atomic(path, (json.dumps(settings, indent=2) + "\n").encode())
            return
        except ValueError as error:
            raise DataError(f"{path} is damaged; give another --output or delete it.") from error
        changed = [
            f"{name} was {before.get(name)!r} and is now {settings.get(name)!r}"
            for name in sorted(before.keys() | settings.keys())
            if before.get(name) != settings.get(name)
        ]
        if changed:
            raise DataError(
                f"{path.parent} holds a run with other settings ({'; '.join(changed)}); "
                "give another --output, or the same settings to resume it."
            )

    def _load(self) -> None:
        self._drop_partial_line()
        fields = {"task": str, "arm": str, "id": str, "prediction": str}
        try:
            records = read_jsonl(self.path, fields, _require_rate, allow_empty=True, any_text=True)
        except DataError as error:
            raise DataError(f"{error} Delete that line to run it again.") from error
        self.records = {_key(record): record for record in records}

    def _drop_partial_line(self) -> None:
        """Cut off a last line without a line feed, which a killed run has left."""
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(self.path, whole)

    def at(self, k: int) -> PredictionLog:
        """This log, for answers from `k` retrieved chunks."""
        view = copy.copy(self)
        view.k = k
        return view

    def get(self, question: Question, arm: Arm) -> dict[str, Any] | None:
        """The record of an arm's answer to a question, or `None` if there is none yet."""
        k = 0 if arm.rate is None else self.k
        return self.records.get((question.task, arm.name, arm.rate, k, question.id))

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Add records and flush them to the file."""
        for record in records:
            record = {**record, "k": 0 if record["rate"] is None else self.k}
            self.records[_key(record)] = record
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def digest(value: Any) -> str:
    """A digest of a JSON value, 16 hex digits."""
    data = json.dumps(value, sort_keys=True, ensure_ascii=True).encode()
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def weights_digest(compressor: ZCompressor) -> str:
    """A digest of all weights of a checkpoint, 16 hex digits."""
    model = compressor.model
    reader, parts = model.state()
    finder = {} if model.finder is None else model.finder.trained()
    total = hashlib.blake2b(digest_size=8)
    for name, tensors in (("reader", reader), ("parts", parts), ("finder", finder)):
        for path in sorted(tensors):
            total.update(f"{name}.{path}".encode())
            total.update(tensors[path].detach().float().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def _require_rate(record: Mapping[str, Any]) -> None:
    if "rate" not in record:
        raise ValueError("field 'rate' is missing")


def _key(record: Mapping[str, Any]) -> tuple[str, str, float | None, int, str]:
    k = 0 if record["rate"] is None else record.get("k", 1)
    return record["task"], record["arm"], record["rate"], k, record["id"]
