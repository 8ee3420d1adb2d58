"""`ztok view` and the page it writes."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import PASSAGE, ztok

from ztok_rag import ZCompressor, ZSequence
from ztok_rag.codec.sequence import EMPTY
from ztok_rag.errors import SequenceError
from ztok_rag.view.page import first_windows, render

FINGERPRINT = "0123456789abcdef"


class WordTokenizer:
    """Each word with the space before it is a token; ids are given as words come up."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def id_of(self, word: str) -> int:
        if word not in self.words:
            self.words.append(word)
        return self.words.index(word)

    def __call__(self, text: str, **_: Any) -> dict[str, list[Any]]:
        found = list(re.finditer(r"\s*\S+|\s+$", text))
        return {
            "input_ids": [self.id_of(match[0]) for match in found],
            "offset_mapping": [match.span() for match in found],
        }

    def decode(self, ids: list[int]) -> str:
        return "".join(self.words[i] for i in ids)


def sequence(
    text: str,
    tokenizer: WordTokenizer,
    sizes: tuple[int, ...],
    anchors: tuple[int, ...],
    windows: tuple[int, ...] | None = None,
) -> ZSequence:
    """Spans of `sizes` tokens; `anchors` says which of its tokens each names."""
    encoding = tokenizer(text)
    ids, starts = encoding["input_ids"], [start for start, _ in encoding["offset_mapping"]]
    firsts = np.cumsum((0, *sizes[:-1]))
    begins = [starts[i] for i in firsts]
    codes = [(ids[i + anchor], 77) for i, anchor in zip(firsts, anchors, strict=True)]
    return ZSequence(
        codes=np.array(codes, dtype=np.uint16),
        spans=np.array(list(zip(begins, [*begins[1:], len(text)], strict=True)), dtype=np.int64),
        windows=windows or (len(sizes),),
        source_tokens=len(ids),
        fingerprint=FINGERPRINT,
    )


def panes(page: str, name: str) -> list[str]:
    return re.findall(rf'<div class="text {name}"[^>]*>(.*?)</div>', page, re.DOTALL)


def bare(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


def spans_of(page: str) -> list[tuple[str, str, str]]:
    """Density class, detail and content of each span."""
    found = re.findall(r'<span class="z (d\d)" title="([^"]*)">(.*?)</span>', page, re.DOTALL)
    return [(density, html.unescape(detail), content) for density, detail, content in found]


TEXT = "The lighthouse stands on Gull Rock,\n\n built in 1873 by Marta Lindqvist. \n"


def test_spans_show_the_source_their_density_and_their_anchor() -> None:
    tokenizer = WordTokenizer()
    z = sequence(TEXT, tokenizer, (4, 1, 1, 4, 3), (1, 0, 0, 2, 1), windows=(3, 2))
    page = render(TEXT, z, [], tokenizer, title="note.txt")
    sources = panes(page, "source")
    assert "".join(map(bare, sources)) == TEXT
    assert [len(spans_of(source)) for source in sources] == [3, 2]
    densities, details, contents = zip(*spans_of(page), strict=True)
    assert densities == ("d4", "d6", "d6", "d4", "d4")
    assert contents[0] == "The <b>lighthouse</b> stands on"
    assert contents[1] == "<b>Gull</b>"
    assert details[0].splitlines() == [
        "Z-token 1 of 5",
        "4 source tokens: The | ␣lighthouse | ␣stands | ␣on",
        "Anchor: ␣lighthouse",
        f"Codes: {tokenizer.id_of(' lighthouse')}, 77",
    ]
    assert details[3].splitlines()[1].startswith("4 source tokens: ⏎⏎␣built")
    for figure in (f"{z.source_tokens}", "2.60", FINGERPRINT, f"{len(z.to_bytes())} bytes"):
        assert figure in page
    assert "The text was not reconstructed" in page and not panes(page, "back")


def test_differences_are_marked_as_elements() -> None:
    tokenizer = WordTokenizer()
    source, back = "Berg left the island in 1968.", "Berg left a small island in 1968."
    z = sequence(source, tokenizer, (3, 3), (0, 0))
    (pane,) = panes(render(source, z, [back], tokenizer), "back")
    assert pane == "Berg left <del>the</del> <ins>a small</ins> island in 1968."
    assert bare(re.sub(r"<del>.*?</del> ", "", pane)) == back
    same = render(source, z, [source], tokenizer)
    assert panes(same, "back") == [source]
    assert "words kept 7, lost 0, invented 0" in same and "All of the text" in same
    (ending,) = panes(render(source, z, ["Berg left it."], tokenizer), "back")
    assert ending == ("Berg left <del>the island in 1968</del> <ins>it</ins>.")
    nothing = render(source, z, [""], tokenizer)
    assert "words kept 0, lost 7, invented 0" in nothing


def test_a_page_runs_no_text() -> None:
    evil = "<script>alert(1)</script> \"'><img src=x onerror=alert(2)> </div> $script &amp; \r x"
    tokenizer = WordTokenizer()
    count = len(tokenizer(evil)["input_ids"])
    z = sequence(evil, tokenizer, (1,) * count, (0,) * count)
    page = render(evil, z, [evil[::-1] + evil], tokenizer, title=evil)
    assert page.count("<script") == 1 and "<img" not in page
    assert "".join(map(bare, panes(page, "source"))) == evil
    attributes: list[tuple[str, str | None]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            attributes.extend(attrs)

    Reader().feed(page)
    names = {name for name, _ in attributes}
    assert "title" in names and not names & {"src", "href", "srcset", "action", "style"}
    assert not any(name.startswith("on") for name in names)
    assert not re.search(r"url\(|@import|https?:", page)
    assert "default-src 'none'" in page


def test_spans_without_characters_keep_their_place_and_tokens() -> None:
    class BytesTokenizer(WordTokenizer):
        """Like a byte-level tokenizer: the second character is two tokens."""

        def __call__(self, text: str, **_: Any) -> dict[str, list[Any]]:
            return {"input_ids": [0, 1, 2, 3], "offset_mapping": [(0, 1), (1, 2), (1, 2), (2, 3)]}

    tokenizer = BytesTokenizer()
    tokenizer.words = ["a", "\ufffd", "\ufffd", "b"]
    z = ZSequence(
        codes=np.array([[0, EMPTY], [1, EMPTY], [2, EMPTY], [3, EMPTY]], dtype=np.uint16),
        spans=np.array([[0, 1], [1, 1], [1, 2], [2, 3]], dtype=np.int64),
        windows=(4,),
        source_tokens=4,
        fingerprint=FINGERPRINT,
    )
    page = render("a日b", z, ["a日b"], tokenizer)
    assert [content for *_, content in spans_of(page)] == ["<b>a</b>", "", "<b>日</b>", "<b>b</b>"]
    assert all("1 source token:" in detail for _, detail, _ in spans_of(page))
    assert "Codes: 1, none" in page


def test_only_the_first_windows_are_reconstructed() -> None:
    tokenizer = WordTokenizer()
    text = " ".join(f"word{i}" for i in range(40))
    z = sequence(text, tokenizer, (5,) * 8, (0,) * 8, windows=(2, 2, 2, 2))
    assert [len(first_windows(z, n)) for n in (0, 1, 11, 40, 1000)] == [0, 1, 2, 4, 4]
    page = render(text, z, ["word0", "word10"], tokenizer)
    assert "Only the first 2 of 4 windows were reconstructed" in page
    assert len(panes(page, "back")) == 2 and len(panes(page, "source")) == 4


def test_z_tokens_of_another_text_are_refused() -> None:
    tokenizer = WordTokenizer()
    z = sequence("one two", tokenizer, (2,), (0,))
    with pytest.raises(SequenceError, match="compress this text"):
        render("one two three", z, [], tokenizer)
    with pytest.raises(SequenceError, match="2 reconstructed windows"):
        render("one two", z, ["one", "two"], tokenizer)


def test_command(tmp_path: Path, compressor: ZCompressor) -> None:
    source, output = tmp_path / "note & <b>.txt", tmp_path / "pages" / "note.html"
    text = f"{PASSAGE}\n\n<script>alert('日本 😀')</script>\n"
    source.write_text(text, encoding="utf-8")
    done = ztok("view", str(source), "-o", str(output), "--rate", "3", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert str(output) in done.stdout and "1 of 1 windows" in done.stdout
    page = output.read_text(encoding="utf-8")
    (pane,), (back,) = panes(page, "source"), panes(page, "back")
    assert bare(pane) == text
    (z,) = compressor.compress([text], 3)
    assert len(spans_of(pane)) == len(z) and compressor.fingerprint in page
    assert pane.count("<b>") > len(z) * 0.8
    assert "<del>" in back and "lighthouse" in back
    assert page.count("<script") == 1 and "<h1>Z-tokens of note &amp; &lt;b&gt;.txt</h1>" in page


@pytest.mark.parametrize("case", ["missing", "binary", "folder"])
def test_bad_input_is_one_line(tmp_path: Path, case: str) -> None:
    source, output = tmp_path / "in.txt", tmp_path / "out.html"
    if case != "missing":
        source.write_bytes(b"\xff\xfe\x00" if case == "binary" else b"Some words.")
    if case == "folder":
        output.mkdir()
    done = ztok("view", str(source), "-o", str(output))
    assert done.returncode == 1
    assert done.stderr.startswith("ztok: ") and len(done.stderr.strip().splitlines()) == 1
    assert not output.is_file()
