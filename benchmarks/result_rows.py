"""Rows of the result files, and the names and colours of what is in them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ztok_rag.errors import DataError
from ztok_rag.evaluation.arms import COPYING

Json = dict[str, Any]


@dataclass(frozen=True)
class Style:
    """Name, colour and marker of an arm. The colours suit colour-blind readers too."""

    label: str
    colour: str
    marker: str = "o"


ARMS = {
    "none": Style("no context", "0.55", "_"),
    "truncate": Style("truncated text", "#E69F00", "s"),
    "fewer-chunks": Style("fewer chunks", "#882255", "v"),
    "self-information": Style("self-information pruning", "#56B4E9", "^"),
    "longllmlingua": Style("LongLLMLingua", "#CC79A7", "D"),
    "trimwise": Style("trimwise", "#009E73", "P"),
    "sentences": Style("best sentences", "#999933", "X"),
    "pieces": Style("our choice, read as text", "#44AA99", "d"),
    "pieces+copying": Style("our choice, read as text, copying", "#44AA99", "H"),
    "ztok": Style("Z-tokens", "#D55E00"),
    "ztok-focus": Style("Z-tokens, focused", "#0072B2", "*"),
    "ztok-twice": Style("Z-tokens, two looks", "#117733", "p"),
    "repeat": Style("repeated by the reader", "0.3", "o"),
    "text": Style("raw text, plain base", "0.4", "p"),
    "text-reader": Style("raw text, text reader", "black", "h"),
    "text-reader+copying": Style("raw text, text reader, copying", "black", "H"),
}

STORED = {
    "text": "raw text",
    "gzip": "gzip",
    "zstd": "zstd",
    "embedding-fp16": "embeddings, fp16",
    "kv-cache-fp16": "KV cache, fp16",
    "ztok-store": "Z-tokens for all rates, with sentence embeddings",
}

SQUAD = "squad/dev"
COVID = "covidqa/questions"

PHASES = {
    "retrieve": "#56B4E9",
    "postprocess": "#E69F00",
    "prefill": "#0072B2",
    "decode": "#CCCCCC",
}


@dataclass
class Results:
    """The rows of all result files. A row's field `file` names the file that it is from.

    Attributes:
        rows: all rows. If two files have a row for the same thing, that of the first is taken.
        runs: the other fields of each file, by its name.
        repeated: number of rows left out because an earlier file has them with another score.
    """

    rows: list[Json] = field(default_factory=list)
    runs: dict[str, Json] = field(default_factory=dict)
    repeated: int = 0

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Read all `results.json` files below `folder`.

        Raises:
            DataError: there is none, or one is damaged.
        """
        found = cls()
        known: dict[tuple[Any, ...], Json] = {}
        for path in sorted(folder.rglob("results.json")):
            name = path.parent.relative_to(folder).as_posix()
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
                rows = data.pop("rows")
                for row in rows:
                    key = tuple(row[part] for part in ("benchmark", "task", "arm", "metric"))
                    key = (*key, row["rate"], row["k"])
                    if key not in known:
                        known[key] = {**row, "file": name}
                    elif known[key]["score"] != row["score"]:
                        found.repeated += 1
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{path} is damaged ({error}); make it again.") from error
            found.runs[name] = data
        if not found.runs:
            raise DataError(f"{folder} holds no results.json; run a benchmark first.")
        found.rows = list(known.values())
        return found

    def where(self, **wanted: Any) -> list[Json]:
        """The rows with the given values."""
        return [row for row in self.rows if all(row.get(k) == v for k, v in wanted.items())]

    def note(self, benchmark: str) -> str:
        """What the file of a benchmark says of how it was made."""
        return str(next(r["note"] for r in self.runs.values() if r.get("benchmark") == benchmark))

    def source(self, rows: Iterable[Json]) -> str:
        """A sentence that names the files, machines and checkpoints of rows."""
        parts = []
        for name in dict.fromkeys(row["file"] for row in rows):
            run = self.runs[name]
            machine = run.get("machine", {})
            where = f"{machine.get('cores')} cores of {machine.get('processor')}"
            if device := machine.get("device"):
                where += f", device {device}"
            if (dtype := machine.get("dtype", "default")) != "default":
                where += f", {dtype}"
            print_ = run.get("fingerprint")
            checkpoint = f", checkpoint `{print_}`" if print_ else ""
            parts.append(f"`benchmarks/results/{name}/results.json` ({where}{checkpoint})")
        return f"From {', '.join(parts)}."


def corpus_rows(results: Results, task: str = SQUAD, metric: str = "f1") -> list[Json]:
    """The rows of one metric of questions over a corpus."""
    return results.where(benchmark="rag_qa", task=task, metric=metric)


def latency_rows(results: Results, part: str) -> list[Json]:
    """The rows of one part of the latency benchmark."""
    return [r for r in results.where(benchmark="latency") if r["task"].split()[0] == part]


def at_k(rows: Sequence[Json], k: int) -> list[Json]:
    """The rows with `k` chunks and those without context, sorted by `arm_order`."""
    return sorted((r for r in rows if r["k"] == k or r["arm"] == "none"), key=arm_order)


def arm_order(row: Json) -> tuple[int, str, float]:
    """A sort key: arms as in `ARMS`, then others; each by rising rate."""
    names = list(ARMS)
    arm = row["arm"]
    return names.index(arm) if arm in ARMS else len(names), arm, row["rate"] or 0.0


def ks_of(rows: Sequence[Json]) -> list[int]:
    """The numbers of chunks in the rows, rising."""
    return sorted({row["k"] for row in rows if row["arm"] != "none"})


def ztok_rates(rows: Iterable[Json]) -> list[float]:
    return sorted({row["rate"] for row in rows if row["arm"] == "ztok"})


def query_arms(rows: Iterable[Json]) -> list[tuple[str, str, float]]:
    """Task, arm and rate of each way to answer: raw text, Z-tokens in the store, then not in it."""
    order = {"query raw": 0, "query warm": 1, "query cold": 2}
    found = {(row["task"], row["arm"], row["rate"]) for row in rows if row["task"] in order}
    return sorted(found, key=lambda way: (order[way[0]], way[2]))


def pick(rows: Iterable[Json], **wanted: Any) -> Json | None:
    """The first row with the given values, or `None`."""
    return next((r for r in rows if all(r.get(k) == v for k, v in wanted.items())), None)


def name_of(arm: str, rate: float | None) -> str:
    """The name of an arm in tables, with the rate if the arm has several."""
    label = ARMS[arm].label if arm in ARMS else arm
    no_choice = rate is None or arm.removesuffix(COPYING) in ("none", "text", "text-reader")
    return label if no_choice else f"{label}, rate {rate:g}"


def chunks(k: int) -> str:
    """The number of chunks, in words."""
    return f"{k} chunk{'s' if k > 1 else ''}"


def throughput_name(row: Json) -> str:
    if row["arm"] == "ztok":
        return f"compress, rate {row['rate']:g}"
    if row["arm"] == "ztok-store":
        return "compress, all rates"
    return f"base, {row['metric'].removesuffix('_tokens_per_second')}"


def query_name(task: str, arm: str, rate: float) -> str:
    return "raw text" if arm != "ztok" else f"rate {rate:g}, {task.removeprefix('query ')}"


def stored_name(row: Json) -> str:
    if row["arm"] == "ztok":
        return f"Z-tokens, rate {row['rate']:g}"
    return STORED.get(row["arm"], str(row["arm"]))
