"""Make all figures and tables of the documents in `docs/` from the results.

    python benchmarks/figures.py

It reads all `results.json` below `benchmarks/results/`, draws the pictures into `docs/`, and
writes each section between its markers `<!-- begin: NAME -->` and `<!-- end: NAME -->` in the
documents. The rest of a document is left as it is. A missing document is made with all sections.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from common import Parser, run_script
from result_rows import COVID, SQUAD, Results
from tables.checkpoint import gold_section, repeated_section
from tables.corpus import accuracy_section, corpus_section, headline_section, paired_section
from tables.costs import bytes_section, latency_section
from tables.longbench import longbench_section
from tables.markdown import Place
from tables.paper import paper_section
from tables.training import ablations_section, memory_section, training_section
from ztok_rag.codec.sequence import write_atomic
from ztok_rag.errors import DataError

ROOT = Path(__file__).parent.parent

RESULTS = Path(__file__).parent / "results"

DOCUMENTS = tuple(
    ROOT / "docs" / f"{name}.md" for name in ("benchmarks", "ablations", "model_card")
)

SECTIONS: dict[str, tuple[str, Callable[[Results, Place], str]]] = {
    "accuracy": ("Accuracy against context tokens", accuracy_section),
    "squad": ("SQuAD dev, over the whole corpus", partial(corpus_section, task=SQUAD)),
    "covid": ("COVID-QA, over long articles", partial(corpus_section, task=COVID)),
    "paired": ("Paired differences", paired_section),
    "longbench": ("LongBench", longbench_section),
    "latency": ("Latency", latency_section),
    "bytes": ("Bytes on disk", bytes_section),
    "paper": ("The paper's own tasks", paper_section),
    "memory": ("Against continuous memory tokens", memory_section),
    "training": ("Training speed", training_section),
    "ablations": ("Ablations", ablations_section),
    "gold": ("", gold_section),
    "repeated": ("", repeated_section),
    "headline": ("", headline_section),
}


def marked(name: str, body: str) -> str:
    return f"<!-- begin: {name} -->\n{body}\n<!-- end: {name} -->"


def skeleton() -> str:
    """A document of empty sections, one for each that has a title."""
    parts = ["# Benchmarks", "Made by `python benchmarks/figures.py` from `benchmarks/results/`."]
    for name, (title, _) in SECTIONS.items():
        if title:
            parts.append(f"## {title}\n\n{marked(name, '')}")
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
        body = SECTIONS[name][1](results, place)
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
