"""Make all figures and tables of the documents in `docs/` from the results.

    python benchmarks/figures.py

It reads all `results.json` below `benchmarks/results/`, draws the pictures into `docs/`, and
writes each section between its markers `<!-- begin: NAME -->` and `<!-- end: NAME -->` in the
documents. The rest of a document is left as it is. A section without results is left out, with
its heading, and its picture is removed. A missing document is made with all sections.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common import Parser, run_script
from result_rows import COVID, SQUAD, Results
from tables.billion import billion_section
from tables.checkpoint import gold_section, repeated_section
from tables.corpus import accuracy_section, corpus_section, paired_section
from tables.costs import (
    bytes_section,
    context_section,
    queries_section,
    query_section,
    serving_section,
    throughput_section,
)
from tables.faults import faults_section, fuzz_section
from tables.longbench import longbench_section
from tables.markdown import Place
from tables.paper import paper_section
from tables.reading import (
    ablations_section,
    determinism_section,
    follow_ups_section,
    lossless_section,
    speculation_section,
    writing_section,
)
from tables.scale import probe_section, scale_section, store_section
from ztok_rag.codec.serialization import write_atomic
from ztok_rag.errors import DataError

ROOT = Path(__file__).parent.parent

RESULTS = Path(__file__).parent / "results"

DOCUMENTS = tuple(ROOT / "docs" / f"{name}.md" for name in ("benchmarks", "model_card", "scale"))


@dataclass(frozen=True)
class Section:
    """A part of a document that is made from results.

    Attributes:
        title: its heading; empty where the document has one.
        write: what stands below the heading; empty without results.
        picture: name of the file that it draws, if any.
    """

    title: str
    write: Callable[[Results, Place], str]
    picture: str = ""

    def make(self, results: Results, place: Place) -> str:
        """The section, drawn and written; empty without results."""
        body = self.write(results, place)
        if not body and self.picture:
            (place.pictures / self.picture).unlink(missing_ok=True)
        return f"## {self.title}\n\n{body}" if body and self.title else body


SECTIONS = {
    "accuracy": Section("Accuracy against context tokens", accuracy_section, "accuracy.png"),
    "squad": Section("SQuAD dev, over the whole corpus", partial(corpus_section, task=SQUAD)),
    "covid": Section("COVID-QA, over long articles", partial(corpus_section, task=COVID)),
    "paired": Section("Paired differences", paired_section),
    "longbench": Section("LongBench", longbench_section),
    "throughput": Section("Compression throughput", throughput_section, "throughput.png"),
    "query": Section("Time to answer", query_section, "query_time.png"),
    "context": Section(
        "First token and KV cache against context length", context_section, "context_length.png"
    ),
    "serving": Section("Many askers at once", serving_section, "serving.png"),
    "queries": Section("A thousand queries at once", queries_section),
    "scale": Section("An index of a million chunks", scale_section, "scale.png"),
    "scale_probe": Section("Time and memory of one process, by size", probe_section),
    "store_size": Section("A store of a million texts", store_section),
    "determinism": Section("Codes and the batch", determinism_section),
    "ablations": Section("What each part of reading gives", ablations_section),
    "follow_ups": Section("Follow-up questions of a chat", follow_ups_section),
    "speculation": Section("Passes and time with drafts", speculation_section),
    "writing": Section("Writing in Z-space", writing_section, "writing.png"),
    "lossless": Section("Lossless files", lossless_section),
    "bytes": Section("Bytes on disk", bytes_section, "bytes.png"),
    "faults": Section("Faults that were made", faults_section),
    "fuzz": Section("Fuzzing", fuzz_section),
    "paper": Section("The paper's own tasks", paper_section),
    "billion": Section("", billion_section),
    "gold": Section("", gold_section),
    "repeated": Section("", repeated_section),
}


def marked(name: str, body: str) -> str:
    return f"<!-- begin: {name} -->\n{body}\n<!-- end: {name} -->"


def skeleton() -> str:
    """A document of empty sections, one for each that has a title."""
    parts = ["# Benchmarks", "Made by `python benchmarks/figures.py` from `benchmarks/results/`."]
    parts += [marked(name, "") for name, section in SECTIONS.items() if section.title]
    return "\n\n".join(parts) + "\n"


def fill(text: str, results: Results, place: Place) -> str:
    """Replace what is between the markers of each section.

    Raises:
        DataError: a marker has no end, or names no section.
    """
    begun = re.findall(r"<!-- begin: ([\w-]+) -->", text)
    for name in begun:
        if name not in SECTIONS:
            raise DataError(
                f"{place.document} marks a section {name!r}; there are {', '.join(SECTIONS)}."
            )
        pattern = re.compile(rf"<!-- begin: {name} -->.*?<!-- end: {name} -->", re.DOTALL)
        if not pattern.search(text):
            raise DataError(f"{place.document} has no <!-- end: {name} --> after its begin.")
        body = SECTIONS[name].make(results, place)
        text = pattern.sub(lambda _, n=name, b=body: marked(n, b), text)  # type: ignore[misc]
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill the documents."""
    parser = Parser(description="Make all figures and tables from the results.")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="default: benchmarks/results"
    )
    parser.add_argument(
        "--documents", type=Path, nargs="+", default=DOCUMENTS, metavar="FILE",
        help="default: those in docs/",
    )  # fmt: skip
    parser.add_argument(
        "--pictures", type=Path, default=ROOT / "docs", metavar="DIR", help="default: docs"
    )
    options = parser.parse_args(arguments)
    results = Results.load(options.results)
    if results.repeated:
        print(f"{results.repeated} rows stand in several files; the first file's were taken.")
    for document in options.documents:
        text = document.read_text(encoding="utf-8") if document.exists() else skeleton()
        filled = fill(text, results, Place(document, options.pictures))
        count = len(re.findall(r"<!-- begin: ", filled))
        if count:
            write_atomic(document, filled.encode())
        print(f"{document}: {count} section{'s' if count != 1 else ''}")


if __name__ == "__main__":
    run_script(main)
