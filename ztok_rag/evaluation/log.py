"""The prediction log, by which an interrupted evaluation resumes, and digests for its settings."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ztok_rag.codec.sequence import write_atomic
from ztok_rag.errors import DataError
from ztok_rag.evaluation.questions import Arm, Question

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor


class PredictionLog:
    """`predictions.jsonl` of an output folder, by which an interrupted run resumes.

    Each line is one answer of one arm from one number of retrieved chunks. What is in the file
    when it is opened counts as done; a last line that a kill left half written is dropped.

    Attributes:
        k: the number of chunks that answers looked up or added are from; see `at`.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open or begin the log in `folder`.

        Args:
            settings: whatever decides a prediction; kept in `settings.json`.

        Raises:
            DataError: the folder holds a run with other settings, or a damaged log.
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
                f"cannot write to {folder} ({error.strerror}); give another --output."
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
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))
        for number, line in enumerate(whole.split(b"\n")[:-1], 1):
            try:
                record = json.loads(line)
                self.records[_key(record)] = record
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{self.path}, line {number} is damaged; delete that line to run it again."
                ) from error

    def at(self, k: int) -> PredictionLog:
        """The same log, for answers from `k` retrieved chunks."""
        view = copy.copy(self)
        view.k = k
        return view

    def get(self, question: Question, arm: Arm) -> dict[str, Any] | None:
        """The record of a question answered by an arm, if it is done."""
        k = 0 if arm.rate is None else self.k
        return self.records.get((question.task, arm.name, arm.rate, k, question.id))

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Add records, on disk when this returns."""
        for record in records:
            record = {**record, "k": 0 if record["rate"] is None else self.k}
            self.records[_key(record)] = record
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def digest(value: Any) -> str:
    """16 hex digits of anything that JSON can hold."""
    data = json.dumps(value, sort_keys=True, ensure_ascii=True).encode()
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def weights_digest(compressor: ZCompressor) -> str:
    """16 hex digits of all weights of the checkpoint, the reader's included."""
    heads, adapters = compressor.model.state()
    total = hashlib.blake2b(digest_size=8)
    for name, tensors in sorted({"heads": heads, **adapters}.items()):
        for path in sorted(tensors):
            total.update(f"{name}.{path}".encode())
            total.update(tensors[path].float().contiguous().numpy().tobytes())
    return total.hexdigest()


def _key(record: Mapping[str, Any]) -> tuple[str, str, float | None, int, str]:
    k = 0 if record["rate"] is None else record.get("k", 1)
    return record["task"], record["arm"], record["rate"], k, record["id"]
