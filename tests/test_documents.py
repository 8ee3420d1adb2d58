"""The documents: their links resolve, and the README's snippet prints what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def prose(document: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(document: Path) -> set[str]:
    """What links can point at in a document: its headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", prose(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_resolve(document: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        path, _, anchor = link.partition("#")
        if path.startswith(("http://", "https://")):
            continue
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_readme_repeats_figures_of_the_benchmarks() -> None:
    figures = re.findall(r"\d+\.\d \(\d+\.\d to \d+\.\d\)", prose(ROOT / "README.md"))
    made = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert figures and [figure for figure in figures if figure not in made] == []


def test_readme_snippet(tmp_path: Path) -> None:
    from ztok_rag.codec.base import cache_dir, default_base_path

    default_base_path()
    (tmp_path / "base").symlink_to(cache_dir() / "base")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    said = re.findall(r"^print\(.*\)  # (.*)$", snippet, flags=re.MULTILINE)
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        env={**os.environ, "ZTOK_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert said and done.stdout.splitlines() == said
