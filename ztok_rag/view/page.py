"""Render a text, its Z-tokens and what the reader repeats as one self-contained HTML page."""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from string import Template
from typing import Any

import numpy as np

from ztok_rag.codec.base import tokenize_exactly
from ztok_rag.codec.sequence import ZSequence
from ztok_rag.errors import SequenceError, ZtokError
from ztok_rag.evaluation.metrics import bleu4, characters_lost
from ztok_rag.view.difference import Difference, difference, escape

_LEVELS = ((1, "1"), (2, "2"), (4, "3 to 4"), (8, "5 to 8"), (16, "9 to 16"))
"""Levels of source tokens per Z-token: the most of each level, and its label."""

_REST = "17 or more"

WINDOW = 128
"""Source tokens of a window, about; the reader repeats one window at a time."""

_PAGE, _STYLE, _SCRIPT = (
    (resources.files("ztok_rag.view") / name).read_text(encoding="utf-8")
    for name in ("page.html", "page.css", "page.js")
)


@dataclass(frozen=True)
class _Token:
    """A source token, its character span `[start, end)`, and whether a Z-token holds it."""

    id: int
    start: int
    end: int
    held: bool


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


def cut_windows(z: ZSequence) -> list[ZSequence]:
    """Parts of a sequence of about `WINDOW` source tokens each, in order."""
    edges = [*np.flatnonzero(np.diff(_window_numbers(z), prepend=-1)).tolist(), len(z)]
    return [z.part(a, b) for a, b in itertools.pairwise(edges)]


def first_windows(z: ZSequence, tokens: int) -> list[ZSequence]:
    """The windows that begin within the first `tokens` source tokens, each as a sequence."""
    parts = cut_windows(z)
    begins = itertools.accumulate((part.source_tokens for part in parts), initial=0)
    return [part for part, begin in zip(parts, begins, strict=False) if begin < tokens]


def _firsts(z: ZSequence) -> list[int]:
    """The first source token of each Z-token's span."""
    return [0, *z.places[np.cumsum(z.sizes)[:-1]].tolist()]


def _window_numbers(z: ZSequence) -> list[int]:
    """The window of each Z-token, from 0 and without gaps."""
    numbers = [first // WINDOW for first in _firsts(z)]
    known = {number: place for place, number in enumerate(dict.fromkeys(numbers))}
    return [known[number] for number in numbers]


def render(
    text: str, z: ZSequence, repeated: Sequence[str], tokenizer: Any, *, title: str = "text"
) -> str:
    """Render the page.

    Args:
        text: the source text.
        z: its Z-tokens.
        repeated: what the reader repeated of each of the first windows of `z`, in order; may be
            empty.
        tokenizer: the tokenizer of the base LLM that made `z`.
        title: name of the text.

    Raises:
        SequenceError: `z` was made from another text, or has fewer windows than `repeated`.
    """
    if z.spans[0, 0] != 0 or z.spans[-1, 1] != len(text):
        raise SequenceError(
            f"these Z-tokens stand for characters {z.spans[0, 0]} to {z.spans[-1, 1]}, and the "
            f"text has {len(text)}; compress this text and show the result."
        )
    count = _window_numbers(z)[-1] + 1
    if len(repeated) > count:
        raise SequenceError(
            f"there are {len(repeated)} repeated windows and the Z-tokens have {count}; give one "
            "string for each of the first windows."
        )
    spans = _spans(text, z, tokenizer)
    windows = [list(group) for _, group in itertools.groupby(spans, key=lambda s: s.window)]
    sources = [text[window[0].start : window[-1].end] for window in windows]
    diffs = [difference(*pair) for pair in zip(sources, repeated, strict=False)]
    facts = _facts(text, z) + _returned(sources, repeated, diffs)
    marked = _Marker(text, tokenizer, total=len(z))
    return Template(_PAGE).substitute(
        title=escape(title),
        policy=_policy(),
        style=_STYLE,
        script=_SCRIPT,
        facts="".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts),
        legend=_legend(spans),
        shown=_shown(len(diffs), len(windows)),
        texts=_texts([(window, "".join(map(marked, window))) for window in windows], diffs),
    )


def _spans(text: str, z: ZSequence, tokenizer: Any) -> list[_Span]:
    """The Z-tokens, each with its source tokens."""
    (found,) = tokenize_exactly(tokenizer, [text])
    if len(found.ids) != z.source_tokens:
        raise SequenceError(
            f"these Z-tokens are of a text of {z.source_tokens} tokens, and this text has "
            f"{len(found.ids)}; compress this text and show the result."
        )
    held = set(z.places.tolist())
    tokens = [
        _Token(id_, start, end, place in held)
        for place, (id_, (start, end)) in enumerate(
            zip(found.ids.tolist(), found.spans.tolist(), strict=True)
        )
    ]
    edges = [*_firsts(z), z.source_tokens]
    windows = _window_numbers(z)
    return [
        _Span(index + 1, windows[index] + 1, start, end, tuple(tokens[a:b]))
        for index, ((start, end), (a, b)) in enumerate(
            zip(z.spans.tolist(), itertools.pairwise(edges), strict=True)
        )
    ]


def _facts(text: str, z: ZSequence) -> list[tuple[str, str]]:
    """Names and values of the compression, as HTML."""
    stored, raw = len(z.to_bytes()), len(text.encode())
    held = len(z.places)
    per_token, raw_per_token = stored / z.source_tokens, raw / z.source_tokens
    return [
        ("Source tokens", f"{z.source_tokens:,}"),
        ("Z-tokens", f"{len(z):,}"),
        ("Rate", f"{z.rate:.2f} <small>tokens per Z-token</small>"),
        ("Tokens held", f"{held:,} <small>{_comes_back(z)}</small>"),
        ("Stored", f"{stored:,} bytes <small>the text takes {raw:,}</small>"),
        ("Bytes per source token", f"{per_token:.2f} <small>text: {raw_per_token:.2f}</small>"),
        ("Checkpoint", f"<code>{z.fingerprint}</code>"),
    ]


def _comes_back(z: ZSequence) -> str:
    """What decompression gives."""
    left = z.source_tokens - len(z.places)
    return f"{left:,} left out" if left else "the text comes back exactly"


def _returned(
    sources: Sequence[str], repeated: Sequence[str], diffs: Sequence[Difference]
) -> list[tuple[str, str]]:
    """Names and values of what the reader repeated, as HTML."""
    if not diffs:
        return [("Came back", "not repeated")]
    source = "".join(sources[: len(diffs)])
    back = "".join(repeated)
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


def _shown(repeated: int, windows: int) -> str:
    """A sentence on which part of the text was repeated."""
    if repeated == windows:
        return "The reader repeated all of the text."
    if not repeated:
        return "The reader was not asked to repeat the text."
    return (
        f"The reader repeated only the first {repeated} of {windows} windows, and the figures "
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


def _texts(windows: Sequence[tuple[Sequence[_Span], str]], diffs: Sequence[Difference]) -> str:
    """The source, window by window, then what the reader repeated of the first ones.

    Nothing stands between the windows of the source, so that the page holds the text as it is.
    The style sheet puts what was repeated beside its source.
    """
    parts = [_source(spans, source) for spans, source in windows]
    parts += [_repeated(number, diff) for number, diff in enumerate(diffs, 1)]
    return f'<div class="texts{" both" if diffs else ""}">{"".join(parts)}</div>'


def _source(spans: Sequence[_Span], source: str) -> str:
    """The source text of a window, under a head that is no text of the page."""
    number = spans[0].window
    tokens = sum(len(span.tokens) for span in spans)
    head = f"Window {number}: {tokens} source tokens, {len(spans)} Z-tokens"
    return (
        f'<div class="text source" dir="auto" lang="" tabindex="0" role="group" '
        f'data-head="{head}" aria-describedby="detail" aria-label="{head}; the left and right '
        f'arrow keys go from Z-token to Z-token">{source}</div>'
    )


def _repeated(number: int, diff: Difference) -> str:
    """What the reader repeated of a window."""
    counts = f"words kept {diff.kept}, lost {diff.lost}, invented {diff.invented}"
    return (
        f'<section class="repeated"><h3>Window {number}, repeated <small>{counts}</small></h3>'
        f'<div class="text back" dir="auto" lang="">{diff.page}</div></section>'
    )


@dataclass(frozen=True)
class _Marker:
    """Renders the source text of a Z-token as HTML, with its shading and detail.

    Tokens that are left out are marked.
    """

    text: str
    tokenizer: Any
    total: int
    names: dict[int, str] = field(default_factory=dict)

    def __call__(self, span: _Span) -> str:
        own = self.text[span.start : span.end]
        # Leading space is put outside the box; inside, it could be left alone at a line's end.
        space = own[: len(own) - len(own.lstrip())] if own.strip() else ""
        begin = span.start + len(space)
        held = np.zeros(max(0, span.end - begin), bool)
        for token, following in itertools.zip_longest(span.tokens, span.tokens[1:]):
            # White space after a token is its own. Of one character's tokens, any may hold it.
            end = max(token.end, following.start if following else span.end)
            if token.held:
                held[max(0, token.start - begin) : max(0, end - begin)] = True
        out = []
        for is_held, run in itertools.groupby(range(len(held)), key=held.__getitem__):
            places = list(run)
            part = escape(self.text[begin + places[0] : begin + places[-1] + 1])
            out.append(part if is_held else f"<s>{part}</s>")
        detail = escape(self._detail(span)).replace("\n", "&#10;")
        box = f'<span class="z d{_density(span)}" title="{detail}">{"".join(out)}</span>'
        return escape(space) + box

    def _detail(self, span: _Span) -> str:
        held = [token.id for token in span.tokens if token.held]
        left = [token.id for token in span.tokens if not token.held]
        lines = [f"Z-token {span.number:,} of {self.total:,}", f"Holds {self._list(held)}"]
        if left:
            lines.append(f"Leaves out {self._list(left)}")
        return "\n".join([*lines, "Codes: " + ", ".join(map(str, held))])

    def _list(self, tokens: Sequence[int]) -> str:
        """Tokens with their number."""
        names = " | ".join(map(self._name, tokens))
        return f"{len(tokens)} token{'s' * (len(tokens) != 1)}: {names}"

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
