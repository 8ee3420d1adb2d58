"""A text, its Z-tokens and what came back of it, as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import difflib
import hashlib
import html
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from string import Template
from typing import Any

from ztok_rag.errors import SequenceError, ZtokError
from ztok_rag.metrics import bleu4, characters_lost
from ztok_rag.sequence import EMPTY, ZSequence

_LEVELS = ((1, "1"), (2, "2"), (4, "3 to 4"), (8, "5 to 8"), (16, "9 to 16"))
"""Most source tokens of a density, densest first, and its label."""
_REST = "17 or more"

_WORD = re.compile(r"(\w+|[^\w\s])(\s*)")


@dataclass(frozen=True)
class _Token:
    """A source token and the characters it covers."""

    id: int
    start: int
    end: int


@dataclass(frozen=True)
class _Span:
    """One Z-token and the source text it stands for; `number` and `window` count from 1."""

    number: int
    window: int
    start: int
    end: int
    tokens: tuple[_Token, ...]
    codes: tuple[int, ...]


@dataclass(frozen=True)
class _Diff:
    """A reconstruction as HTML with its differences marked, and how many words differ."""

    page: str
    kept: int
    lost: int
    invented: int


def first_windows(z: ZSequence, tokens: int) -> list[ZSequence]:
    """The windows that begin within the first `tokens` source tokens, a sequence each."""
    parts = z.parts(1)
    begins = itertools.accumulate((part.source_tokens for part in parts), initial=0)
    return [part for part, begin in zip(parts, begins, strict=False) if begin < tokens]


def render(
    text: str,
    z: ZSequence,
    reconstruction: Sequence[str],
    tokenizer: Any,
    *,
    title: str = "text",
    anchors: int = 1,
) -> str:
    """The page.

    Args:
        text: the source text.
        z: its Z-tokens.
        reconstruction: what the reader wrote for the first windows of `z`, in order; it may
            be empty.
        tokenizer: the Hugging Face tokenizer of the base that made `z`.
        title: name of the text.
        anchors: how many codes of a Z-token are token ids.

    Raises:
        SequenceError: `z` was not made from this text, or has fewer windows than there are
            reconstructions.
    """
    if z.spans[0, 0] != 0 or z.spans[-1, 1] != len(text):
        raise SequenceError(
            f"these Z-tokens stand for characters {z.spans[0, 0]} to {z.spans[-1, 1]}, and the "
            f"text has {len(text)}; compress this text and show the result."
        )
    if len(reconstruction) > len(z.windows):
        raise SequenceError(
            f"there are {len(reconstruction)} reconstructed windows and the Z-tokens have "
            f"{len(z.windows)}; give one string for each of the first windows."
        )
    spans = _spans(text, z, tokenizer)
    windows = [list(group) for _, group in itertools.groupby(spans, key=lambda s: s.window)]
    sources = [text[window[0].start : window[-1].end] for window in windows]
    diffs = [_diff(*pair) for pair in zip(sources, reconstruction, strict=False)]
    facts = _facts(text, z) + _returned(sources, reconstruction, diffs)
    marked = _Marker(text, tokenizer, total=len(z), anchors=anchors)
    return _PAGE.substitute(
        title=_escape(title),
        policy=_policy(),
        style=_STYLE,
        script=_SCRIPT,
        facts="".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts),
        legend=_legend(spans),
        shown=_shown(len(diffs), len(windows)),
        windows="\n".join(
            _window(window, "".join(map(marked, window)), diff)
            for window, diff in itertools.zip_longest(windows, diffs)
        ),
    )


def _spans(text: str, z: ZSequence, tokenizer: Any) -> list[_Span]:
    """The Z-tokens with the source tokens of each."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    tokens = [
        _Token(id_, start, end)
        for id_, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
    ]
    bounds = z.spans.tolist()
    windows = [number for number, size in enumerate(z.windows, start=1) for _ in range(size)]
    spans, taken = [], 0
    for index, (start, end) in enumerate(bounds):
        first = taken
        while taken < len(tokens) and tokens[taken].start < end:
            taken += 1
        # Tokens that are parts of one character begin at the same place; a span that ends
        # there covers no characters, and one of those tokens is its.
        if start == end and taken < len(tokens):
            taken += 1
        spans.append(
            _Span(
                number=index + 1,
                window=windows[index],
                start=start,
                end=end,
                tokens=tuple(tokens[first:taken]),
                codes=tuple(z.codes[index].tolist()),
            )
        )
    return spans


def _facts(text: str, z: ZSequence) -> list[tuple[str, str]]:
    """Names and values, as HTML, of what compression did."""
    stored, raw = len(z.to_bytes()), len(text.encode())
    per_token, raw_per_token = stored / z.source_tokens, raw / z.source_tokens
    return [
        ("Source tokens", f"{z.source_tokens:,}"),
        ("Z-tokens", f"{len(z):,}"),
        ("Rate", f"{z.rate:.2f} <small>tokens per Z-token</small>"),
        ("Stored", f"{stored:,} bytes <small>the text takes {raw:,}</small>"),
        ("Bytes per source token", f"{per_token:.2f} <small>text: {raw_per_token:.2f}</small>"),
        ("Checkpoint", f"<code>{z.fingerprint}</code>"),
    ]


def _returned(
    sources: Sequence[str], reconstruction: Sequence[str], diffs: Sequence[_Diff]
) -> list[tuple[str, str]]:
    """Names and values, as HTML, of how much of the reconstructed windows came back."""
    if not diffs:
        return [("Came back", "not reconstructed")]
    source = "".join(sources[: len(diffs)])
    back = "".join(reconstruction)
    kept = sum(diff.kept for diff in diffs)
    words = kept + sum(diff.lost for diff in diffs)
    invented = sum(diff.invented for diff in diffs)
    try:
        bleu = f"{100 * bleu4(back, [source]):.1f} <small>of 100</small>"
    except ZtokError:
        bleu = "<small>needs the packages of <code>ztok-rag[bench]</code></small>"
    return [
        ("Words kept", f"{kept / max(words, 1):.0%} <small>{kept:,} of {words:,}</small>"),
        ("Words invented", f"{invented:,}"),
        (
            "Characters lost",
            f"{characters_lost(back, [source]):.0%} <small>unlike texts share letters too</small>",
        ),
        ("BLEU-4", bleu),
    ]


def _shown(reconstructed: int, windows: int) -> str:
    """What part of the text the reconstruction covers."""
    if reconstructed == windows:
        return "All of the text was reconstructed."
    if not reconstructed:
        return "The text was not reconstructed."
    return (
        f"Only the first {reconstructed} of {windows} windows were reconstructed, and the figures "
        "on what came back are of these; <code>--reconstruct-tokens</code> sets how many."
    )


def _legend(spans: Sequence[_Span]) -> str:
    """Rows of the legend, which is also a histogram of source tokens per Z-token."""
    labels = [label for _, label in _LEVELS] + [_REST]
    counts, tokens = [0] * len(labels), [0] * len(labels)
    for span in spans:
        row = len(labels) - _density(span)
        counts[row] += 1
        tokens[row] += len(span.tokens)
    highest = max(counts)
    return "\n".join(
        f'<tr><th scope="row"><span class="swatch d{len(labels) - row}"></span>{label}</th>'
        f"<td>{counts[row]:,}</td><td>{tokens[row]:,}</td>"
        '<td class="wide"><svg viewBox="0 0 100 10" preserveAspectRatio="none" '
        f'aria-hidden="true"><rect width="{100 * counts[row] / highest:.1f}" height="10"/></svg>'
        "</td></tr>"
        for row, label in enumerate(labels)
    )


def _density(span: _Span) -> int:
    """6 where the Z-token stands for one source token, down to 1."""
    above = sum(len(span.tokens) > most for most, _ in _LEVELS)
    return len(_LEVELS) + 1 - above


def _window(spans: Sequence[_Span], source: str, diff: _Diff | None) -> str:
    """One window: its source text and, if there is one, the reconstruction beside it."""
    number = spans[0].window
    tokens = sum(len(span.tokens) for span in spans)
    head = f"{tokens} source tokens, {len(spans)} Z-tokens"
    if diff is None:
        back = ""
    else:
        head += f"; words kept {diff.kept}, lost {diff.lost}, invented {diff.invented}"
        back = (
            "<div><h4>Reconstruction</h4>"
            f'<div class="text back" dir="auto" lang="">{diff.page}</div></div>'
        )
    return (
        f'<section><h3>Window {number} <small>{head}</small></h3><div class="pair">'
        f'<div><h4>Source</h4><div class="text source" dir="auto" lang="" tabindex="0" '
        f'role="group" aria-describedby="detail" aria-label="Source of window {number}; the left '
        f'and right arrow keys go from Z-token to Z-token">{source}</div></div>'
        f"{back}</div></section>"
    )


@dataclass(frozen=True)
class _Marker:
    """Writes the source text of spans as HTML, each with its colour, anchors and detail."""

    text: str
    tokenizer: Any
    total: int
    anchors: int
    names: dict[int, str] = field(default_factory=dict)

    def __call__(self, span: _Span) -> str:
        own = self.text[span.start : span.end]
        # Outside the box, the space before a word leaves no stub of a box at a line's end.
        space = own[: len(own) - len(own.lstrip())] if own.strip() else ""
        out, at = [], span.start + len(space)
        for start, end in self._anchored(span):
            out += [_escape(self.text[at:start]), f"<b>{_escape(self.text[start:end])}</b>"]
            at = end
        out.append(_escape(self.text[at : span.end]))
        detail = _escape(self._detail(span)).replace("\n", "&#10;")
        box = f'<span class="z d{_density(span)}" title="{detail}">{"".join(out)}</span>'
        return _escape(space) + box

    def _anchored(self, span: _Span) -> Iterator[tuple[int, int]]:
        """Characters `[a, b)` of the first source token that each anchor names, in order."""
        named = {code for code in span.codes[: self.anchors] if code != EMPTY}
        at = span.start
        for token in span.tokens:
            if token.id not in named:
                continue
            named.remove(token.id)
            end = min(token.end, span.end)
            start = max(token.start, at)
            start += len(self.text[start:end]) - len(self.text[start:end].lstrip())
            if start < end:
                yield start, end
                at = end

    def _detail(self, span: _Span) -> str:
        codes = ["none" if code == EMPTY else str(code) for code in span.codes]
        named = [code for code in span.codes[: self.anchors] if code != EMPTY]
        count = len(span.tokens)
        return "\n".join(
            (
                f"Z-token {span.number:,} of {self.total:,}",
                f"{count} source token{'s' * (count != 1)}: "
                + " | ".join(self._name(token.id) for token in span.tokens),
                "Anchor: " + (" | ".join(map(self._name, named)) or "none"),
                "Codes: " + ", ".join(codes),
            )
        )

    def _name(self, token: int) -> str:
        """A token as text, with its white space visible."""
        if token not in self.names:
            name = str(self.tokenizer.decode([token]))
            for character, sign in ((" ", "␣"), ("\n", "⏎"), ("\r", "␍"), ("\t", "⇥")):
                name = name.replace(character, sign)
            self.names[token] = name
        return self.names[token]


def _diff(source: str, back: str) -> _Diff:
    """The reconstruction of `source`, with the words of either text that the other lacks."""
    ours, theirs = _WORD.findall(source), _WORD.findall(back)
    matcher = difflib.SequenceMatcher(
        None, [word for word, _ in ours], [word for word, _ in theirs], autojunk=False
    )
    out: list[str] = []
    kept = lost = invented = 0
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            kept += b - a
            out += [_escape(word + space) for word, space in theirs[c:d]]
            if d == len(theirs) and b < len(ours):
                out.append(ours[b - 1][1])
            continue
        lost += b - a
        invented += d - c
        out += [_change("del", ours[a:b], " " * (d > c)), _change("ins", theirs[c:d])]
    return _Diff("".join(out), kept, lost, invented)


def _change(tag: str, words: Sequence[tuple[str, str]], gap: str = "") -> str:
    """Words that one text has alone, in an element, then their white space, at least `gap`."""
    if not words:
        return ""
    run = "".join(word + space for word, space in words)
    bare = run.rstrip()
    return f"<{tag}>{_escape(bare)}</{tag}>{_escape(run[len(bare) :] or gap)}"


def _escape(text: str) -> str:
    """`text` as HTML; a carriage return, which parsers make a line feed, as a reference."""
    return html.escape(text).replace("\r", "&#13;")


def _policy() -> str:
    """A content security policy: the page's own style and script, and nothing else."""
    style, script = (
        base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        for part in (_STYLE, _SCRIPT)
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; "
        "base-uri 'none'; form-action 'none'"
    )


_STYLE = """
:root{color-scheme:light dark;--ground:#fff;--raised:#f5f6f8;--ink:#16191d;--dim:#565d66;
--line:#d4d8de;--edge:#8fa6c8;--accent:#1f5fc4;--lost:#a3202c;--lostbg:#fde8e8;--new:#6b3fa0;
--newbg:#efe7fa;--d1:#fff;--d2:#edf3fd;--d3:#d9e6fb;--d4:#bfd5f8;--d5:#a0c1f4;--d6:#7eaaef}
@media (prefers-color-scheme:dark){:root{--ground:#111418;--raised:#1a1e24;--ink:#e8eaed;
--dim:#a2aab4;--line:#333a43;--edge:#4d6285;--accent:#7fb0ff;--lost:#ff9a9f;--lostbg:#3c1c20;
--new:#cdb0ff;--newbg:#2c2140;--d1:#111418;--d2:#16233a;--d3:#1a2f52;--d4:#1f3c6b;--d5:#254b89;
--d6:#2c5ca9}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
header,main{max-width:76rem;margin:0 auto;padding:0 1rem}
h1{font-size:1.5rem;margin:1.25rem 0 .75rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2rem 0 .5rem}
h3{font-size:1rem;margin:1.5rem 0 .4rem}
h4{font-size:.8rem;font-weight:600;color:var(--dim);margin:0 0 .25rem}
small{font-size:.8rem;font-weight:400;color:var(--dim)}
code{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:.9em}
p{margin:.4rem 0;max-width:46rem}
dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(10rem,1fr));gap:.5rem;margin:0}
dl>div{background:var(--raised);border:1px solid var(--line);border-radius:.4rem;
padding:.45rem .7rem}
dt{font-size:.8rem;color:var(--dim)}
dd{margin:0;font-size:1.1rem;font-variant-numeric:tabular-nums}
dd small{display:block}
dd code{font-size:.85rem;overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%;max-width:46rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--dim);font-size:.9rem;padding-bottom:.3rem}
th,td{text-align:right;padding:.15rem .9rem .15rem 0;font-weight:400;white-space:nowrap}
th:first-child{text-align:left}
thead th{font-size:.8rem;color:var(--dim);white-space:normal;vertical-align:bottom}
.wide{width:50%;padding-right:0}
svg{display:block;width:100%;height:.75rem;fill:var(--accent)}
.swatch{display:inline-block;width:1.6em;height:1em;margin-right:.5em;vertical-align:-.1em;
border:1px solid var(--edge);border-radius:3px}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1rem}
.pair>div{min-width:0}
.text{white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.85;border:1px solid var(--line);
border-radius:.4rem;padding:.6rem .8rem}
.z{border:1px solid var(--edge);border-radius:3px;padding:.08em 0;cursor:pointer;
-webkit-box-decoration-break:clone;box-decoration-break:clone}
.z:empty::before{content:"\\b7"}
.z b,.key b{font-weight:700;text-decoration:underline;text-decoration-thickness:2px;
text-underline-offset:3px}
.z:hover,.z.on{outline:2px solid var(--ink);outline-offset:1px}
.source:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
.d1{background:var(--d1)}.d2{background:var(--d2)}.d3{background:var(--d3)}
.d4{background:var(--d4)}.d5{background:var(--d5)}.d6{background:var(--d6)}
del{color:var(--lost);background:var(--lostbg);text-decoration:line-through}
ins{color:var(--new);background:var(--newbg);font-style:italic;text-decoration:underline double}
del::before,del::after,ins::before,ins::after{position:absolute;width:1px;height:1px;
overflow:hidden;clip-path:inset(50%);white-space:nowrap}
del::before{content:" [lost: "}ins::before{content:" [invented: "}
del::after,ins::after{content:"] "}
#detail{position:sticky;bottom:0;max-height:40vh;overflow:auto;margin:1.5rem 0 0;
padding:.6rem .9rem;background:var(--raised);border:1px solid var(--line);
border-radius:.4rem .4rem 0 0;box-shadow:0 -2px 10px rgb(0 0 0/.15);font-size:.9rem;
white-space:pre-line;overflow-wrap:anywhere}
#detail p{margin:0;max-width:none;white-space:normal}
@media print{#detail{display:none}}
"""

_SCRIPT = """
"use strict";
const detail = document.getElementById("detail");
let chosen = null;
function choose(z) {
  if (chosen) chosen.classList.remove("on");
  chosen = z;
  z.classList.add("on");
  detail.textContent = z.title;
  const box = z.getBoundingClientRect();
  if (box.top < 0 || box.bottom > innerHeight - detail.offsetHeight)
    z.scrollIntoView({block: "center"});
}
for (const pane of document.querySelectorAll(".source")) {
  pane.addEventListener("click", event => {
    const z = event.target.closest(".z");
    if (z) choose(z);
  });
  pane.addEventListener("keydown", event => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const inside = chosen && chosen.parentElement === pane;
    const to = {
      ArrowRight: inside ? chosen.nextElementSibling : pane.firstElementChild,
      ArrowLeft: inside ? chosen.previousElementSibling : pane.lastElementChild,
      Home: pane.firstElementChild,
      End: pane.lastElementChild,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    if (to) choose(to);
  });
}
"""

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Z-tokens of $title</title>
<style>$style</style>
</head>
<body>
<header>
<h1>Z-tokens of $title</h1>
<dl>$facts</dl>
</header>
<main>
<h2>How to read this page</h2>
<p class="key">Each box in the source is a span that one Z-token stands for, the stronger its colour
the fewer source tokens it shares the Z-token with. The token it names, its anchor, is
<b>bold and underlined</b>. A reconstruction is what the reader writes from the Z-tokens alone:
plain words were kept, <del>struck words</del> were lost, and <ins>slanted, doubly underlined
words</ins> were invented.</p>
<table>
<caption>Source tokens per Z-token</caption>
<thead><tr><th scope="col">Source tokens in the span</th><th scope="col">Z-tokens</th>
<th scope="col">Source tokens</th><td class="wide"></td></tr></thead>
<tbody>
$legend
</tbody>
</table>
<h2>Text and reconstruction</h2>
<p>$shown</p>
$windows
<div id="detail" role="status"><p>Choose a box in the source, or move to the source with Tab and
use the left and right arrow keys, to see its tokens and codes here.</p></div>
</main>
<script>$script</script>
</body>
</html>
""")
