"""Render a text, its Z-tokens and its reconstruction as one self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import resources
from string import Template
from typing import Any

from ztok_rag.codec.sequence import EMPTY, ZSequence
from ztok_rag.errors import SequenceError, ZtokError
from ztok_rag.evaluation.metrics import bleu4, characters_lost
from ztok_rag.view.difference import Difference, difference, escape

_LEVELS = ((1, "1"), (2, "2"), (4, "3 to 4"), (8, "5 to 8"), (16, "9 to 16"))
"""Levels of source tokens per Z-token: the most of each level, and its label."""

_REST = "17 or more"

_PAGE, _STYLE, _SCRIPT = (
    (resources.files("ztok_rag.view") / name).read_text(encoding="utf-8")
    for name in ("page.html", "page.css", "page.js")
)


@dataclass(frozen=True)
class _Token:
    """A source token and its character span `[start, end)`."""

    id: int
    start: int
    end: int


@dataclass(frozen=True)
class _Span:
    """A Z-token and its source text, the characters `[start, end)`.

    `number` and `window` count from 1.
    """

    number: int
    window: int
    start: int
    end: int
    tokens: tuple[_Token, ...]
    codes: tuple[int, ...]


def first_windows(z: ZSequence, tokens: int) -> list[ZSequence]:
    """The windows that begin within the first `tokens` source tokens, each as a sequence."""
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
    """Render the page.

    Args:
        text: the source text.
        z: its Z-tokens.
        reconstruction: the text reconstructed for each of the first windows of `z`, in order;
            may be empty.
        tokenizer: the tokenizer of the base LLM that made `z`.
        title: name of the text.
        anchors: number of codes of a Z-token that are token ids.

    Raises:
        SequenceError: `z` was made from another text, or has fewer windows than
            `reconstruction`.
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
    diffs = [difference(*pair) for pair in zip(sources, reconstruction, strict=False)]
    facts = _facts(text, z) + _returned(sources, reconstruction, diffs)
    marked = _Marker(text, tokenizer, total=len(z), anchors=anchors)
    return Template(_PAGE).substitute(
        title=escape(title),
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
    """The Z-tokens, each with its source tokens."""
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
        # The tokens of one character all have its span. A Z-token for some of them may have an
        # empty span; it takes one of these tokens.
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
    """Names and values of the compression, as HTML."""
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
    sources: Sequence[str], reconstruction: Sequence[str], diffs: Sequence[Difference]
) -> list[tuple[str, str]]:
    """Names and values of the reconstruction, as HTML."""
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
    """A sentence on which part of the text was reconstructed."""
    if reconstructed == windows:
        return "All of the text was reconstructed."
    if not reconstructed:
        return "The text was not reconstructed."
    return (
        f"Only the first {reconstructed} of {windows} windows were reconstructed, and the figures "
        "on what came back are of these; <code>--reconstruct-tokens</code> sets how many."
    )


def _legend(spans: Sequence[_Span]) -> str:
    """The rows of the legend, which is also a histogram of source tokens per Z-token."""
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
    """The level of shading: 6 for one source token per Z-token, down to 1 for 17 or more."""
    above = sum(len(span.tokens) > most for most, _ in _LEVELS)
    return len(_LEVELS) + 1 - above


def _window(spans: Sequence[_Span], source: str, diff: Difference | None) -> str:
    """A window: its source text and, if there is one, the reconstruction beside it."""
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
    """Renders the source text of a Z-token as HTML, with its shading, anchors and detail."""

    text: str
    tokenizer: Any
    total: int
    anchors: int
    names: dict[int, str] = field(default_factory=dict)

    def __call__(self, span: _Span) -> str:
        own = self.text[span.start : span.end]
        # Leading space is put outside the box; inside, it could be left alone at a line's end.
        space = own[: len(own) - len(own.lstrip())] if own.strip() else ""
        out, at = [], span.start + len(space)
        for start, end in self._anchored(span):
            out += [escape(self.text[at:start]), f"<b>{escape(self.text[start:end])}</b>"]
            at = end
        out.append(escape(self.text[at : span.end]))
        detail = escape(self._detail(span)).replace("\n", "&#10;")
        box = f'<span class="z d{_density(span)}" title="{detail}">{"".join(out)}</span>'
        return escape(space) + box

    def _anchored(self, span: _Span) -> Iterator[tuple[int, int]]:
        """The character span of the first source token that each anchor names, in text order."""
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
        """A token as text, with its white space made visible."""
        if token not in self.names:
            name = str(self.tokenizer.decode([token]))
            for character, sign in ((" ", "␣"), ("\n", "⏎"), ("\r", "␍"), ("\t", "⇥")):
                name = name.replace(character, sign)
            self.names[token] = name
        return self.names[token]


def _policy() -> str:
    """A content security policy that allows only the page's own style and script."""
    style, script = (
        base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        for part in (_STYLE, _SCRIPT)
    )
    return (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; "
        "base-uri 'none'; form-action 'none'"
    )
