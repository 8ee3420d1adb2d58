"""LongBench's English tasks over retrieved context: no text, raw text, Z-tokens.

    python benchmarks/longbench.py --data DIR --output DIR

`DIR` holds TASK.jsonl files in LongBench's format with LongBench's `dataset2prompt.json` and
`dataset2maxlen.json`; `--data hub` downloads them. Without `--data`, a small set of questions
on Python's own documentation is run instead, which is not LongBench.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import shutil
import urllib.request
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common import (
    chunk_size,
    load_compressor,
    make_parser,
    names,
    peer_differences,
    run,
    run_script,
    split_context,
)
from embed import embed_queries, embed_texts
from ztok_rag.codec.prompts import QA_TEMPLATE
from ztok_rag.errors import DataError
from ztok_rag.evaluation import (
    Arm,
    PredictionLog,
    Question,
    Row,
    digest,
    metrics,
    read_jsonl,
    sample,
    split_template,
    summarize,
)

logger = logging.getLogger(__name__)

Metric = Callable[[str, Sequence[str], Sequence[str]], float]
"""Takes a prediction, its answers and the task's class names."""

PYDOC_TASK = "pydoc_qa"
_PYDOC_NOTE = (
    "This is NOT LongBench: it is a small set of questions on Python's own documentation that "
    "this project wrote, run because no LongBench data were given (--data)."
)
_REPOSITORY = "THUDM/LongBench"
_CONFIG_URL = "https://raw.githubusercontent.com/THUDM/LongBench/main/LongBench/config/"
_CONFIG = ("dataset2prompt.json", "dataset2maxlen.json")
QUALITY = "quality"
"""Not a task of LongBench's: multiple-choice questions on stories (Pang et al. 2022)."""

_QUALITY_PROMPT = QA_TEMPLATE.replace("{question}", "{input}")
_QUALITY_LENGTH = 48
_OPTION = re.compile(r"^\s*(\([A-Z]\) .*?)(?=\n\s*\([A-Z]\) |\Z)", re.DOTALL | re.MULTILINE)
_QUERY_CHARACTERS = 1000
_FULL_LINE = 50
"""Fewest characters of a line, not the last, of a wrapped paragraph."""


@dataclass(frozen=True)
class TaskKind:
    """How the answers of a task are scored.

    Attributes:
        metric: its name in the results.
        first_line: only the first line of a prediction counts.
        chat: a chat model is asked in its chat format.
    """

    metric: str
    score: Metric
    first_line: bool = False
    chat: bool = True


def _plain(metric: Callable[[str, Sequence[str]], float]) -> Metric:
    return lambda prediction, answers, classes: metric(prediction, answers)


_F1 = TaskKind("f1", _plain(metrics.token_f1))
_ROUGE = TaskKind("rouge_l", _plain(metrics.rouge_l_union))
_CODE = TaskKind("edit_similarity", _plain(metrics.edit_similarity), chat=False)

LONGBENCH: dict[str, TaskKind] = {
    "narrativeqa": _F1,
    "qasper": _F1,
    "multifieldqa_en": _F1,
    "hotpotqa": _F1,
    "2wikimqa": _F1,
    "musique": _F1,
    "gov_report": _ROUGE,
    "qmsum": _ROUGE,
    "multi_news": _ROUGE,
    "trec": TaskKind("classification", metrics.classification, first_line=True, chat=False),
    "triviaqa": TaskKind("f1", _plain(metrics.token_f1), first_line=True, chat=False),
    "samsum": TaskKind("rouge_l", _plain(metrics.rouge_l_union), first_line=True, chat=False),
    "passage_count": TaskKind("count", _plain(metrics.count)),
    "passage_retrieval_en": TaskKind("retrieval", _plain(metrics.retrieval)),
    "lcc": _CODE,
    "repobench-p": _CODE,
}
TASKS = {**LONGBENCH, QUALITY: TaskKind("choice", metrics.choice)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = _parser().parse_args(arguments)
    unknown = [name for name in options.tasks or () if name not in TASKS]
    if unknown and not (options.data is None and unknown == [PYDOC_TASK]):
        raise DataError(f"unknown task {unknown[0]!r}; the tasks are {', '.join(TASKS)}.")
    if options.data is None:
        note = _PYDOC_NOTE
        print(note)
        if options.tasks and options.tasks != [PYDOC_TASK]:
            raise DataError(f"the tasks {', '.join(options.tasks)} need --data DIR or --data hub.")
        loaded = {PYDOC_TASK: pydoc_records()}
        template = QA_TEMPLATE.replace("{question}", "{input}")
        templates, lengths = {PYDOC_TASK: template}, {PYDOC_TASK: 32}
    else:
        folder = download() if options.data == "hub" else Path(options.data)
        names = options.tasks or [name for name in TASKS if task_file(folder, name).exists()]
        if not names:
            raise DataError(
                f"{folder} holds no TASK.jsonl file of {', '.join(TASKS)}; give another --data."
            )
        templates, lengths = load_config(folder, options.templates, names)
        loaded = {name: load_task(folder, name) for name in names}
        note = (
            f"LongBench records of {options.data}, official templates, answer lengths and "
            "metrics, over retrieved chunks."
        )
    chosen = {
        name: sample(records, options.limit, options.seed) for name, records in loaded.items()
    }
    tasks = {
        name: [make_question(name, r, templates[name], lengths[name]) for r in records]
        for name, records in chosen.items()
    }
    compressor = load_compressor(options)
    benchmark = "longbench" if options.data else PYDOC_TASK
    run(
        options,
        benchmark=benchmark,
        note=f"{note} Contexts were split into chunks of {options.chunk_tokens} tokens and "
        + " or ".join(f"the {k} nearest" if k else "all of them" for k in options.k)
        + " read in document order.",
        tasks=tasks,
        settings={
            "chunk_tokens": options.chunk_tokens,
            "data": None if options.data is None else str(options.data),
            "templates": digest([templates, lengths]),
        },
        compressor=compressor,
        retrieve=Retriever(
            {
                (name, record["_id"]): record
                for name, records in chosen.items()
                for record in records
            },
            compressor.tokenizer,
            options.chunk_tokens,
        ),
        best_first=False,
        summarize=partial(_rows, benchmark, tasks, options.seed),
    )


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("Run LongBench's English tasks over retrieved context.", k=4, limit=None)
    parser.add_argument(
        "--data",
        default=None,
        metavar="DIR",
        help="folder of TASK.jsonl files, or `hub` to download them "
        "(default: a small set of questions on Python, which is not LongBench)",
    )
    parser.add_argument(
        "--tasks",
        type=names,
        default=None,
        metavar="A,B",
        help="comma-separated (default: every task in the folder)",
    )
    parser.add_argument(
        "--templates",
        type=Path,
        default=None,
        metavar="FILE",
        help="prompt templates by task (default: dataset2prompt.json of the data folder)",
    )
    parser.add_argument(
        "--chunk-tokens",
        type=chunk_size,
        default=256,
        metavar="N",
        help="tokens of the base LLM per chunk (default: 256)",
    )
    return parser


def _rows(
    benchmark: str,
    tasks: Mapping[str, Sequence[Question]],
    seed: int,
    arms: Sequence[Arm],
    log: PredictionLog,
    k: int,
) -> list[Row]:
    """The scores of all arms, then what Z-tokens gain over each peer."""
    rows = summarize(benchmark, tasks, arms, log, k=k, seed=seed)
    return rows + peer_differences(tasks, arms, log, benchmark=benchmark, k=k, seed=seed)


# ----------------------------------------------------------------------------------------------
# Data


def load_task(folder: Path, task: str) -> list[dict[str, Any]]:
    """The records of one task, `_id` filled in where it is missing or repeated.

    Raises:
        DataError: the file is missing, or a record is malformed.
    """
    path = task_file(folder, task)
    if not path.exists():
        raise DataError(f"{path} does not exist; give a folder with the files of all --tasks.")
    if task == QUALITY:
        return _load_quality(path)
    records = read_jsonl(
        path,
        {"input": str, "context": str, "answers": list},
        partial(_check_record, TASKS[task].metric),
    )
    seen: set[str] = set()
    for number, record in enumerate(records):
        name = str(record.get("_id") or number)
        record["_id"] = name if name not in seen else f"{name}#{number}"
        seen.add(record["_id"])
        record["all_classes"] = record.get("all_classes") or []
    return records


def task_file(folder: Path, task: str) -> Path:
    """Where the records of a task are; QuALITY's are in L-Eval's format."""
    return folder / ("leval_quality.jsonl" if task == QUALITY else f"{task}.jsonl")


def _load_quality(path: Path) -> list[dict[str, Any]]:
    """L-Eval's QuALITY, each question with its options as one record."""
    documents = read_jsonl(path, {"id": str, "document": str}, _check_quality)
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
    for asked in record.get("questions") or [{}]:
        if not isinstance(asked, dict) or not all(
            isinstance(asked.get(name), str) for name in ("question", "answer")
        ):
            raise ValueError("field 'questions' is not a list of {question, answer}")
        if not _with_letter_of(asked["answer"], _options(asked["question"])):
            raise ValueError(f"the answer {asked['answer']!r} is not among its question's options")


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


def load_config(
    folder: Path, templates: Path | None, tasks: Sequence[str]
) -> tuple[dict[str, str], dict[str, int]]:
    """Prompt template and answer length by task, for at least `tasks`.

    Args:
        templates: read in place of the folder's `dataset2prompt.json`.

    Raises:
        DataError: a file is missing or malformed, or lacks a task.
    """
    prompts, lengths = {}, {}
    if QUALITY in tasks:
        prompts[QUALITY], lengths[QUALITY] = _QUALITY_PROMPT, _QUALITY_LENGTH
    if own := [task for task in tasks if task != QUALITY]:
        prompts |= _load_json(templates or folder / _CONFIG[0], str, own)
        lengths |= _load_json(folder / _CONFIG[1], int, own)
    return prompts, lengths


def _load_json(path: Path, kind: type, tasks: Sequence[str]) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"cannot read {path} ({error.strerror}); LongBench's {path.name} belongs beside its "
            "TASK.jsonl files (or give --templates FILE)."
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}).") from error
    for task in tasks:
        if not isinstance(values, dict) or not isinstance(values.get(task), kind):
            raise DataError(f"{path} has no entry of type {kind.__name__} for the task {task}.")
    return dict(values)


def download() -> Path:
    """LongBench's files from the hub, kept in the cache folder.

    Raises:
        DataError: they cannot be downloaded.
    """
    from ztok_rag.codec.base import cache_dir

    folder = cache_dir() / "longbench"
    if all((folder / name).exists() for name in (*_CONFIG, *(f"{t}.jsonl" for t in LONGBENCH))):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    try:
        from huggingface_hub import hf_hub_download

        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        archive = hf_hub_download(_REPOSITORY, "data.zip", repo_type="dataset")
        with zipfile.ZipFile(archive) as files:
            for task in LONGBENCH:
                with files.open(f"data/{task}.jsonl") as source:
                    _save(source, folder / f"{task}.jsonl")
        for name in _CONFIG:
            with urllib.request.urlopen(_CONFIG_URL + name, timeout=60) as source:
                _save(source, folder / name)
    except Exception as error:  # every layer below has its own errors for an absent network
        cause = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise DataError(
            f"cannot download LongBench ({cause}); give a folder of its files by --data DIR."
        ) from error
    return folder


def _save(source: Any, path: Path) -> None:
    """Copy a stream to `path`, atomically."""
    temporary = path.with_name(f".{path.name}.part")
    with temporary.open("wb") as file:
        shutil.copyfileobj(source, file)
    temporary.replace(path)


def pydoc_records() -> list[dict[str, Any]]:
    """The project's own questions, on documents of the standard library's `pydoc_data.topics`.

    A question whose answer this Python's documentation does not hold is left out with a warning.
    """
    from pydoc_data.topics import topics

    path = Path(__file__).parent / "pydoc_qa.json"
    records = []
    for number, item in enumerate(json.loads(path.read_text(encoding="utf-8"))):
        document = unwrap(topics.get(item["topic"], ""))
        if item["answers"][0].lower() not in document.lower():
            logger.warning(
                "warning: left out, as this Python's documentation does not answer it: %s",
                item["question"],
            )
            continue
        records.append(
            {
                "_id": str(number),
                "input": item["question"],
                "context": document,
                "answers": item["answers"],
                "all_classes": [],
            }
        )
    return records


def unwrap(text: str) -> str:
    """The text with the lines of each paragraph of prose joined; code and tables stay."""
    paragraphs = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.split("\n")
        same_indent = len({len(line) - len(line.lstrip()) for line in lines}) == 1
        full = all(len(line) >= _FULL_LINE for line in lines[:-1])
        if same_indent and full and lines[0].lstrip()[:1] not in {"+", "|", ">"}:
            joined = " ".join([lines[0], *(line.strip() for line in lines[1:])])
            block = re.sub(r"(?<=\w)- (?=\w)", "-", joined) if len(lines) > 1 else block
        paragraphs.append(block)
    return "\n\n".join(paragraphs)


# ----------------------------------------------------------------------------------------------
# Questions


def make_question(
    task: str, record: Mapping[str, Any], template: str, max_new_tokens: int
) -> Question:
    """A record as a question; white space at the end of its context follows the context."""
    before, after = split_template(template, input=record["input"])
    context = record["context"]
    answers, classes = record["answers"], record["all_classes"]
    kind = TASKS.get(task, _F1)

    def score(prediction: str) -> dict[str, float]:
        if kind.first_line:
            prediction = metrics.first_line(prediction)
        return {kind.metric: kind.score(prediction, answers, classes)}

    return Question(
        id=record["_id"],
        task=task,
        before=before,
        after=context[len(context.rstrip()) :] + after,
        text=record["input"] or f"{before} … {after}",
        answers=tuple(answers),
        max_new_tokens=max_new_tokens,
        score=score,
        chat=kind.chat,
    )


class Retriever:
    """The `k` chunks of each question's own context nearest to the question, in document order.

    A record without a question, as in code completion and summaries, asks with the end of its
    context. `k` of 0 keeps every chunk.
    """

    def __init__(
        self,
        records: Mapping[tuple[str, str], Mapping[str, Any]],
        tokenizer: Any,
        chunk_tokens: int,
    ) -> None:
        self.records = records
        self.tokenizer = tokenizer
        self.chunk_tokens = chunk_tokens

    def __call__(self, questions: Sequence[Question], k: int) -> list[list[str]]:
        records = [self.records[question.task, question.id] for question in questions]
        contexts = list(dict.fromkeys(record["context"] for record in records))
        split = {
            context: split_context(context, self.tokenizer, self.chunk_tokens)
            for context in contexts
        }
        if not k:
            return [split[record["context"]] for record in records]
        chunks = list(dict.fromkeys(chunk for context in contexts for chunk in split[context]))
        places = {chunk: place for place, chunk in enumerate(chunks)}
        vectors = embed_texts(chunks)
        queries = embed_queries(
            [(r["input"].strip() or split[r["context"]][-1])[-_QUERY_CHARACTERS:] for r in records]
        )
        found = []
        for record, query in zip(records, queries, strict=True):
            own = split[record["context"]]
            scores = vectors[[places[chunk] for chunk in own]] @ query
            best = np.argsort(-scores, kind="stable")[:k]
            found.append([own[i] for i in sorted(best)])
        return found


if __name__ == "__main__":
    run_script(main)
