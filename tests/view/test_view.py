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
from ztok_rag.codec.base import tokenize_exactly
from ztok_rag.codec.sequence import pack_codes
from ztok_rag.codec.token_code import TokenCode
from ztok_rag.errors import SequenceError
from ztok_rag.view import page as view_page
from ztok_rag.view.page import cut_windows, first_windows, render

FINGERPRINT = "0123456789abcdef"
CODE = TokenCode.uniform(128)


class WordTokenizer:
    """Each word with the space before it is a token; ids are given as words come up."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def id_of(self, word: str) -> int:
        if word not in self.words:
            self.words.append(word)
        return self.words.index(word)

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[Any]]:
        found = [list(re.finditer(r"\s*\S+|\s+$", text)) for text in texts]
        return {
            "input_ids": [[self.id_of(match[0]) for match in own] for own in found],
            "offset_mapping": [[match.span() for match in own] for own in found],
        }

    def decode(self, ids: list[int]) -> str:
        return "".join(self.words[i] for i in ids)


def sequence(
    text: str, tokenizer: WordTokenizer, sizes: tuple[int, ...], left_out: tuple[int, ...] = ()
) -> ZSequence:
    """Spans of `sizes` tokens; the tokens `left_out` are held by none."""
    (tokens,) = tokenize_exactly(tokenizer, [text])
    ids, starts = tokens.ids, tokens.starts
    held = np.setdiff1d(np.arange(len(ids)), left_out)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    begins = [starts[held[owner[held] == i][0]] if i else 0 for i in range(len(sizes))]
    return ZSequence(
        codes=pack_codes(ids[held], owner[held], 16),
        places=held,
        spans=np.array(list(zip(begins, [*begins[1:], len(text)], strict=True)), dtype=np.int64),
        source_tokens=len(ids),
        fingerprint=FINGERPRINT,
        code=CODE,
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


def test_spans_show_the_source_their_density_and_what_they_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(view_page, "WINDOW", 6)
    tokenizer = WordTokenizer()
    z = sequence(TEXT, tokenizer, (4, 1, 1, 4, 3), left_out=(1, 8))
    page = render(TEXT, z, [], tokenizer, title="note.txt")
    sources = panes(page, "source")
    assert "".join(map(bare, sources)) == TEXT
    assert [len(spans_of(source)) for source in sources] == [3, 2]
    densities, details, contents = zip(*spans_of(page), strict=True)
    assert densities == ("d4", "d6", "d6", "d4", "d4")
    assert contents[0] == "The<s> lighthouse</s> stands on"
    assert contents[1] == "Gull" and contents[3] == "built in<s> 1873</s> by"
    assert details[0].splitlines() == [
        "Z-token 1 of 5",
        "Holds 3 tokens: The | ␣stands | ␣on",
        "Leaves out 1 token: ␣lighthouse",
        f"Codes: {', '.join(str(tokenizer.id_of(w)) for w in ('The', ' stands', ' on'))}",
    ]
    assert details[1].splitlines()[1:] == [
        "Holds 1 token: ␣Gull", f"Codes: {tokenizer.id_of(' Gull')}"
    ]  # fmt: skip
    assert details[3].splitlines()[1].startswith("Holds 3 tokens: ⏎⏎␣built")
    for figure in (f"{z.source_tokens}", "2.60", FINGERPRINT, f"{len(z.to_bytes())} bytes"):
        assert figure in page
    assert "2 left out" in page
    assert "was not asked to repeat" in page and not panes(page, "back")


UNICODE = [
    TEXT,
    "\n  Zanzabell\r\n\r\tcolumn \u00a0 \u3000 wide\u2028line \ufeffmark  \n\n",
    "日本語の文章は、空白なしで書かれます。" * 40,
    "👩‍👩‍👧‍👦 e\u0301 \u202eabc\u202c नमस्ते مرحبا <b>&amp;</b> ]]> " * 30,
    "".join(f"Item {n}: weir beside gravel, {n * 7 % 90 + 2} pieces.\n" for n in range(110)),
]


@pytest.mark.parametrize("text", UNICODE)
@pytest.mark.parametrize("rate", [1, 4, 24])
def test_without_its_tags_the_page_holds_the_text(
    compressor: ZCompressor, text: str, rate: int
) -> None:
    (z,) = compressor.compress([text], rate)
    page = render(text, z, ["Repeated."], compressor.tokenizer)
    assert text in bare(page)
    assert text in bare(render(text, z, [], compressor.tokenizer))


def test_differences_are_marked_as_elements() -> None:
    tokenizer = WordTokenizer()
    source, back = "Berg left the island in 1968.", "Berg left a small island in 1968."
    z = sequence(source, tokenizer, (3, 3))
    (pane,) = panes(render(source, z, [back], tokenizer), "back")
    assert pane == "Berg left <del>the</del> <ins>a small</ins> island in 1968."
    assert bare(re.sub(r"<del>.*?</del> ", "", pane)) == back
    same = render(source, z, [source], tokenizer)
    assert panes(same, "back") == [source]
    assert "words kept 7, lost 0, invented 0" in same and "repeated all of the text" in same
    (ending,) = panes(render(source, z, ["Berg left it."], tokenizer), "back")
    assert ending == ("Berg left <del>the island in 1968</del> <ins>it</ins>.")
    nothing = render(source, z, [""], tokenizer)
    assert "words kept 0, lost 7, invented 0" in nothing


def test_a_page_runs_no_text() -> None:
    evil = "<script>alert(1)</script> \"'><img src=x onerror=alert(2)> </div> $script &amp; \r x"
    tokenizer = WordTokenizer()
    count = len(tokenize_exactly(tokenizer, [evil])[0].ids)
    z = sequence(evil, tokenizer, (1,) * count)
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

        def __call__(self, texts: list[str], **_: Any) -> dict[str, list[Any]]:
            spans = [(0, 1), (1, 2), (1, 2), (2, 3)]
            return {"input_ids": [[0, 1, 2, 3]], "offset_mapping": [spans]}

    tokenizer = BytesTokenizer()
    tokenizer.words = ["a", "\ufffd", "\ufffd", "b"]
    z = ZSequence(
        codes=np.arange(4, dtype=np.int32).reshape(4, 1),
        places=np.arange(4),
        spans=np.array([[0, 1], [1, 1], [1, 2], [2, 3]], dtype=np.int64),
        source_tokens=4,
        fingerprint=FINGERPRINT,
        code=CODE,
    )
    page = render("a日b", z, ["a日b"], tokenizer)
    assert [content for *_, content in spans_of(page)] == ["a", "", "日", "b"]
    assert all("Holds 1 token:" in detail for _, detail, _ in spans_of(page))


def test_only_the_first_windows_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_page, "WINDOW", 10)
    tokenizer = WordTokenizer()
    text = " ".join(f"word{i}" for i in range(40))
    z = sequence(text, tokenizer, (5,) * 8)
    assert [part.source_tokens for part in cut_windows(z)] == [10] * 4
    assert [len(first_windows(z, n)) for n in (0, 1, 11, 40, 1000)] == [0, 1, 2, 4, 4]
    page = render(text, z, ["word0", "word10"], tokenizer)
    assert "repeated only the first 2 of 4 windows" in page
    assert len(panes(page, "back")) == 2 and len(panes(page, "source")) == 4


def test_z_tokens_of_another_text_are_refused() -> None:
    tokenizer = WordTokenizer()
    z = sequence("one two", tokenizer, (2,))
    with pytest.raises(SequenceError, match="compress this text"):
        render("one two three", z, [], tokenizer)
    with pytest.raises(SequenceError, match="of 2 tokens, and this text has 1"):
        render("onetwo_", z, [], tokenizer)
    with pytest.raises(SequenceError, match="2 repeated windows"):
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
    z.save(tmp_path / "note.zt")
    done = ztok("view", str(tmp_path / "note.zt"), "-o", str(output), "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert panes(output.read_text(encoding="utf-8"), "source") == [pane]
    assert "lighthouse" in back
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
