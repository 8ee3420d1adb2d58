"""What every evaluation shares: arms, prompts, the prediction log, intervals and results."""

from __future__ import annotations

import json
import logging
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ztok_rag.errors import DataError
from ztok_rag.sequence import ZSequence, write_atomic

if TYPE_CHECKING:
    from tqdm import tqdm

    from ztok_rag.compressor import ZCompressor

logger = logging.getLogger(__name__)

ARM_NAMES = ("none", "text", "text-reader", "ztok")
JOIN = "\n\n"
"""Stands between two retrieved chunks, as text or as Z-tokens."""

Segments = list[str | ZSequence]


@dataclass(frozen=True)
class Arm:
    """One way to give a model its context.

    Attributes:
        name: one of `ARM_NAMES`.
        rate: source tokens per context position: 1 for raw text, `None` for no context.
        adapter: the reader's adapter; `None` is the plain base LLM.
    """

    name: str
    rate: float | None
    adapter: str | None

    @property
    def label(self) -> str:
        """The name, with the rate where there may be several."""
        return f"{self.name} {self.rate:g}x" if self.name == "ztok" else self.name


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


@dataclass
class Row:
    """One line of `results.json`; scores are 0 to 100, costs are means per question."""

    benchmark: str
    task: str
    arm: str
    rate: float | None
    k: int
    metric: str
    score: float
    ci95: tuple[float, float]
    n: int
    context_tokens: float | None = None
    bytes_per_source_token: float | None = None
    prefill_ms: float | None = None
    ttft_ms: float | None = None
    kv_bytes: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The fields, those of `extra` beside them, with floats cut to 4 decimals."""
        fields = asdict(self)
        fields.update(fields.pop("extra"))
        return {name: _rounded(value) for name, value in fields.items()}


def make_arms(names: Sequence[str], rates: Sequence[float], adapters: Sequence[str]) -> list[Arm]:
    """The arms asked for, `ztok` once per rate.

    An arm whose adapter the checkpoint lacks is left out, with a warning.

    Args:
        adapters: of the checkpoint.

    Raises:
        DataError: an unknown arm, a rate below 1, or no arm left.
    """
    arms = []
    for name in dict.fromkeys(names):
        if name == "none":
            arms.append(Arm(name, None, "read"))
        elif name == "text":
            arms.append(Arm(name, 1.0, None))
        elif name == "text-reader":
            if "text" in adapters:
                arms.append(Arm(name, 1.0, "text"))
            else:
                logger.warning(
                    "warning: the arm text-reader is left out: "
                    "this checkpoint has no adapter trained on raw text."
                )
        elif name == "ztok":
            arms += [Arm(name, float(rate), "read") for rate in dict.fromkeys(rates)]
        else:
            raise DataError(f"unknown arm {name!r}; the arms are {', '.join(ARM_NAMES)}.")
    if bad := [rate for rate in rates if not rate >= 1]:
        raise DataError(f"a rate is at least 1 source token per Z-token, not {bad[0]:g}.")
    if not arms:
        raise DataError(f"no arm is left to run; the arms are {', '.join(ARM_NAMES)}.")
    return arms


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


# ----------------------------------------------------------------------------------------------
# Records


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
                _check_field(record, name, kind)
            if check is not None:
                check(record)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}.") from error
        records.append(record)
    if not records:
        raise DataError(f"{path} holds no records.")
    return records


def _check_field(record: Mapping[str, Any], name: str, kind: type) -> None:
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


# ----------------------------------------------------------------------------------------------
# The prediction log


class PredictionLog:
    """`predictions.jsonl` of an output folder, by which an interrupted run resumes.

    Each line is one answer of one arm. What is in the file when it is opened counts as done; a
    last line that a kill left half written is dropped.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open or begin the log in `folder`.

        Args:
            settings: whatever decides a prediction; kept in `settings.json`.

        Raises:
            DataError: the folder holds a run with other settings, or a damaged log.
        """
        self.path = folder / "predictions.jsonl"
        self.records: dict[tuple[str, str, float | None, str], dict[str, Any]] = {}
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

    def get(self, question: Question, arm: Arm) -> dict[str, Any] | None:
        """The record of a question answered by an arm, if it is done."""
        return self.records.get((question.task, arm.name, arm.rate, question.id))

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Add records, on disk when this returns."""
        for record in records:
            self.records[_key(record)] = record
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _key(record: Mapping[str, Any]) -> tuple[str, str, float | None, str]:
    return record["task"], record["arm"], record["rate"], record["id"]


# ----------------------------------------------------------------------------------------------
# Running the arms


@dataclass(frozen=True)
class _Prompt:
    """A prompt with the cost of its context."""

    segments: Segments
    context_tokens: int
    source_tokens: int
    stored_bytes: int
    truncated: bool


def evaluate(
    questions: Sequence[Question],
    arms: Sequence[Arm],
    *,
    compressor: ZCompressor,
    retrieve: Callable[[Sequence[Question]], Sequence[Sequence[str]]],
    log: PredictionLog,
    batch_size: int = 8,
    measured: int = 8,
    seed: int = 0,
    bar: tqdm[Any] | None = None,
) -> None:
    """Answer every question by every arm, into `log`; what `log` already holds is not run again.

    Args:
        questions: of one task.
        retrieve: the chunks of each question, in the order in which they are read.
        batch_size: most prompts in one batch.
        measured: number of questions per arm whose prefill is timed.
        bar: progress bar, moved by one per answer, answers already there included.
    """
    reader = compressor.reader
    timed = {question.id for question in sample(questions, measured, seed)}
    todo = {arm: [q for q in questions if log.get(q, arm) is None] for arm in arms}
    with_context = {q.id: q for arm in arms if arm.rate is not None for q in todo[arm]}

    def show(state: str) -> None:
        if bar is not None:
            bar.set_postfix_str(f"{questions[0].task}: {state}")

    show("retrieving")
    found = retrieve(list(with_context.values())) if with_context else []
    chunks = dict(zip(with_context, found, strict=True))

    for arm in arms:
        if bar is not None:
            bar.update(len(questions) - len(todo[arm]))
        compressed: dict[str, ZSequence] = {}
        if arm.name == "ztok" and todo[arm]:
            texts = list(dict.fromkeys(text for q in todo[arm] for text in chunks[q.id]))
            for start in range(0, len(texts), 64):
                show(f"compressing at {arm.rate:g}x, {start} of {len(texts)} chunks done")
                part = texts[start : start + 64]
                compressed |= zip(part, compressor.compress(part, rate=arm.rate), strict=True)
        show(arm.label)
        prompts = {
            q.id: _build(q, arm, chunks.get(q.id, ()), compressed, compressor) for q in todo[arm]
        }
        warm = False
        for batch in _batches(todo[arm], prompts, reader, batch_size):
            outputs = reader.generate(
                [prompts[q.id].segments for q in batch],
                max_new_tokens=batch[0].max_new_tokens,
                adapter=arm.adapter,
                batch_size=batch_size,
            )
            records = []
            for question, output in zip(batch, outputs, strict=True):
                record = _record(question, arm, prompts[question.id], output)
                if question.gold is not None and arm.rate is not None:
                    record["gold_retrieved"] = question.gold in chunks[question.id]
                if question.id in timed:
                    segments = prompts[question.id].segments
                    if not warm:
                        reader.measure(segments, adapter=arm.adapter)
                        warm = True
                    cost = reader.measure(segments, adapter=arm.adapter)
                    record |= {
                        "prefill_ms": round(cost.prefill_ms, 3),
                        "ttft_ms": round(cost.ttft_ms, 3),
                        "kv_bytes": cost.kv_bytes,
                    }
                records.append(record)
            log.append(records)
            if bar is not None:
                bar.update(len(batch))


def _record(question: Question, arm: Arm, prompt: _Prompt, output: str) -> dict[str, Any]:
    return {
        "task": question.task,
        "arm": arm.name,
        "rate": arm.rate,
        "id": question.id,
        "prediction": output,
        "answers": list(question.answers),
        "scores": {name: round(value, 6) for name, value in question.score(output).items()},
        "context_tokens": prompt.context_tokens,
        "source_tokens": prompt.source_tokens,
        "stored_bytes": prompt.stored_bytes,
        "truncated": prompt.truncated,
    }


def _batches(
    questions: Sequence[Question], prompts: Mapping[str, _Prompt], reader: Any, batch_size: int
) -> list[list[Question]]:
    """Questions by falling prompt length, so that little is padded and the worst comes first."""
    most_positions = 2 * int(reader.max_positions)
    lengths = {q.id: reader.count_tokens(prompts[q.id].segments) for q in questions}
    batches: list[list[Question]] = []
    for question in sorted(questions, key=lambda q: -lengths[q.id]):
        batch = batches[-1] if batches else []
        if (
            not batch
            or len(batch) == batch_size
            or (len(batch) + 1) * lengths[batch[0].id] > most_positions
        ):
            batches.append([question])
        else:
            batch.append(question)
    return batches


def _build(
    question: Question,
    arm: Arm,
    chunks: Sequence[str],
    compressed: Mapping[str, ZSequence],
    compressor: ZCompressor,
) -> _Prompt:
    """The prompt of an arm, with the middle of the context left out where it is too long."""
    reader = compressor.reader
    # A few positions are kept back: texts cut apart may take more tokens than together.
    room = reader.max_positions - question.max_new_tokens - 8
    before, after = question.before, question.after
    if question.chat and arm.adapter is None:
        head, tail = chat_frame(compressor.tokenizer)
        before, after = head + before, after + tail
    whole = before, after
    if reader.count_tokens(before + after) > room:
        before, _ = cut_middle(before, room // 4, compressor.tokenizer)
        after, _ = cut_middle(after, room - room // 4 - 8, compressor.tokenizer)
    cut = (before, after) != whole
    room = max(0, room - reader.count_tokens(before + after))

    if arm.rate is None:
        return _Prompt([before + after], 0, 0, 0, cut)
    if arm.name != "ztok":
        text, text_cut = cut_middle(JOIN.join(chunks), room, compressor.tokenizer)
        tokens = reader.count_tokens(text) if text else 0
        stored = len(text.encode("utf-8", "surrogatepass"))
        return _Prompt([before + text + after], tokens, tokens, stored, cut or text_cut)

    kept = [compressed[chunk] for chunk in chunks]
    joint = reader.count_tokens(JOIN)
    while kept and sum(len(z) + joint for z in kept) > room:
        del kept[len(kept) // 2]
        cut = True
    segments: Segments = []
    for z in kept:
        segments += [JOIN, z] if segments else [z]
    return _Prompt(
        [before, *segments, after],
        reader.count_tokens(segments) if segments else 0,
        sum(z.source_tokens for z in kept),
        sum(len(z.to_bytes()) for z in kept),
        cut,
    )


def chat_frame(tokenizer: Any) -> tuple[str, str]:
    """What a chat model's format puts before and after a user's message; empty without one."""
    if not getattr(tokenizer, "chat_template", None):
        return "", ""
    place = "{message}"
    framed = tokenizer.apply_chat_template(
        [{"role": "user", "content": place}], tokenize=False, add_generation_prompt=True
    )
    head, _, tail = framed.partition(place)
    return head, tail


def cut_middle(text: str, limit: int, tokenizer: Any) -> tuple[str, bool]:
    """The text's first and last `limit // 2` tokens, and whether anything was cut.

    A text of at most `limit` tokens stays whole.
    """
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    if len(offsets) <= limit:
        return text, False
    half = limit // 2
    if not half:
        return "", True
    return text[: offsets[half - 1][1]] + text[offsets[-half][0] :], True


# ----------------------------------------------------------------------------------------------
# Results


def bootstrap_ci(
    scores: Sequence[float], seed: int = 0, *, samples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, in the scores' own unit."""
    return stratified_ci([scores], seed, samples=samples, level=level)


def stratified_ci(
    groups: Sequence[Sequence[float]], seed: int = 0, *, samples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """As `bootstrap_ci`, of the mean of the groups' means, drawn within each group."""
    generator = np.random.default_rng(seed)
    means = np.zeros(samples)
    for group in groups:
        values = np.asarray(group, dtype=np.float64)
        drawn = generator.integers(0, len(values), size=(samples, len(values)))
        means += values[drawn].mean(axis=1) / len(groups)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarize(
    benchmark: str,
    tasks: Mapping[str, Sequence[Question]],
    arms: Sequence[Arm],
    log: PredictionLog,
    *,
    k: int,
    seed: int = 0,
) -> list[Row]:
    """A row per task, arm and metric, and the mean over tasks where there are several.

    Raises:
        DataError: the log lacks a question.
    """
    rows = []
    for arm in arms:
        groups: list[list[float]] = []
        means: list[Row] = []
        for task, questions in tasks.items():
            records = _records(questions, arm, log)
            for index, (metric, scores) in enumerate(_scores(questions, records).items()):
                row = Row(
                    benchmark=benchmark,
                    task=task,
                    arm=arm.name,
                    rate=arm.rate,
                    k=k if arm.rate is not None else 0,
                    metric=metric,
                    score=float(np.mean(scores)),
                    ci95=bootstrap_ci(scores, seed),
                    n=len(scores),
                    **_costs(records),
                )
                rows.append(row)
                if index == 0:
                    groups.append(scores)
                    means.append(row)
        if len(tasks) > 1:
            rows.append(_mean_row(means, stratified_ci(groups, seed)))
    return rows


def paired_difference(
    questions: Sequence[Question],
    arm: Arm,
    other: Arm,
    log: PredictionLog,
    metric: str,
    *,
    benchmark: str,
    k: int,
    seed: int = 0,
) -> Row:
    """The row of `arm`'s score minus `other`'s on the same questions, with its interval."""
    records = _records(questions, arm, log)
    ours = _scores(questions, records)[metric]
    theirs = _scores(questions, _records(questions, other, log))[metric]
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    return Row(
        benchmark=benchmark,
        task=questions[0].task,
        arm=arm.name,
        rate=arm.rate,
        k=k,
        metric=f"{metric}_minus_{other.name}",
        score=float(np.mean(differences)),
        ci95=bootstrap_ci(differences, seed),
        n=len(differences),
        **_costs(records),
    )


def _records(questions: Sequence[Question], arm: Arm, log: PredictionLog) -> list[dict[str, Any]]:
    records = []
    for question in questions:
        record = log.get(question, arm)
        if record is None:
            raise DataError(f"{log.path} lacks question {question.id}; run the same command again.")
        records.append(record)
    return records


def _scores(
    questions: Sequence[Question], records: Sequence[Mapping[str, Any]]
) -> dict[str, list[float]]:
    """Scores by metric, 0 to 100, computed from the predictions."""
    scores: dict[str, list[float]] = {}
    for question, record in zip(questions, records, strict=True):
        for name, value in question.score(record["prediction"]).items():
            scores.setdefault(name, []).append(100 * value)
    return scores


def _costs(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Cost fields of a row."""

    def mean(name: str) -> float | None:
        values = [record[name] for record in records if name in record]
        return float(np.mean(values)) if values else None

    positions = sum(record["context_tokens"] for record in records)
    tokens = sum(record["source_tokens"] for record in records)
    stored = sum(record["stored_bytes"] for record in records)
    return {
        "context_tokens": mean("context_tokens"),
        "bytes_per_source_token": stored / tokens if tokens else None,
        "prefill_ms": mean("prefill_ms"),
        "ttft_ms": mean("ttft_ms"),
        "kv_bytes": mean("kv_bytes"),
        "extra": {
            "source_tokens": mean("source_tokens"),
            "source_tokens_per_position": tokens / positions if positions else None,
            "truncated": sum(record["truncated"] for record in records),
            "measured": sum("prefill_ms" in record for record in records),
        }
        | ({"gold_retrieved": share} if (share := mean("gold_retrieved")) is not None else {}),
    }


def _mean_row(rows: Sequence[Row], interval: tuple[float, float]) -> Row:
    """The unweighted mean over tasks of one arm."""

    def mean(name: str) -> float | None:
        values = [getattr(row, name) for row in rows]
        return None if None in values else float(np.mean(values))

    first = rows[0]
    return Row(
        benchmark=first.benchmark,
        task="average",
        arm=first.arm,
        rate=first.rate,
        k=first.k,
        metric="mean",
        score=float(np.mean([row.score for row in rows])),
        ci95=interval,
        n=sum(row.n for row in rows),
        context_tokens=mean("context_tokens"),
        bytes_per_source_token=mean("bytes_per_source_token"),
        prefill_ms=mean("prefill_ms"),
        ttft_ms=mean("ttft_ms"),
        kv_bytes=mean("kv_bytes"),
        extra={"truncated": sum(row.extra["truncated"] for row in rows)},
    )


def machine_info(device: str | None = None) -> dict[str, Any]:
    """The machine and the versions that timings and scores depend on."""
    names = ("torch", "transformers", "peft")
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "device": device,
        "python": platform.python_version(),
        **{name: _version(name) for name in names},
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of the checkout this package runs from, `+` after it if files differ."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def write_results(
    folder: Path,
    rows: Sequence[Row],
    *,
    seed: int,
    checkpoint: str,
    device: str | None = None,
    command: Sequence[str] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """Write `results.json` into `folder`, atomically, and return what it holds.

    Args:
        command: `None` is this process's own.
        extra: further fields beside `rows`.
    """
    results = {
        "command": shlex.join(command or sys.argv),
        "commit": git_commit(),
        "machine": machine_info(device),
        "seed": seed,
        "checkpoint": checkpoint,
        **extra,
        "rows": [row.to_dict() for row in rows],
    }
    write_atomic(folder / "results.json", (json.dumps(results, indent=2) + "\n").encode())
    return results


def format_table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    header = (
        "task", "arm", "metric", "score", "95% interval", "n", "context tokens",
        "bytes/source token", "prefill ms", "first token ms", "KV MiB",
    )  # fmt: skip
    lines = [header, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    out = []
    for line in lines:
        cells = [
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        out.append("  ".join(cells).rstrip())
    out.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(out)


def _cells(row: Row) -> tuple[str, ...]:
    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    arm = Arm(row.arm, row.rate, None).label
    return (
        row.task,
        arm,
        row.metric,
        number(row.score, 1),
        f"{row.ci95[0]:.1f} to {row.ci95[1]:.1f}",
        str(row.n),
        number(row.context_tokens, 0),
        number(row.bytes_per_source_token, 2),
        number(row.prefill_ms, 0),
        number(row.ttft_ms, 0),
        number(None if row.kv_bytes is None else row.kv_bytes / 2**20, 2),
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value
