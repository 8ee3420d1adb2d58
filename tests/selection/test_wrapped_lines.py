"""Line breaks of wrapped text do not end sentences; those of lists, tables and code do."""

from __future__ import annotations

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztok_rag.selection.sentences import split_sentences
from ztok_rag.selection.wrapped_lines import find_wraps

STORY = (
    "There once lived a miller who had three sons, and the youngest of them was called Hamlin. "
    "He swept the floor, drew water from the well, and fetched peat from the moor behind the "
    "mill, while his brothers slept by the fire until the sun stood high over the valley. "
    "One morning a raven with a golden ring in its beak sat down on the sill."
)
SENTENCES = [(0, 90), (90, 263), (263, len(STORY))]


def wrapped(text: str, width: int = 66) -> str:
    return "\n".join(textwrap.wrap(text, width))


def breaks(text: str) -> list[int]:
    return [place for place, character in enumerate(text) if character == "\n"]


def test_wrapped_text_is_cut_into_the_sentences_it_has() -> None:
    assert list(split_sentences(STORY)) == SENTENCES
    assert list(split_sentences(wrapped(STORY))) == SENTENCES


def test_empty_lines_and_the_last_line_of_a_paragraph_end_a_sentence() -> None:
    text = f"The miller's sons\n\n{wrapped(STORY)}\n\n{wrapped(STORY)}\n"
    inside = set(breaks(text)) - set(breaks(text.replace("\n\n", "__").removesuffix("\n") + "_"))
    assert find_wraps(text) == set(breaks(text)) - inside - {len(text) - 1}
    assert len(split_sentences(text)) == 1 + 2 * len(SENTENCES)


@pytest.mark.parametrize(
    "text",
    [
        "- flour, two cups of it, sifted\n- butter\n- one egg, beaten with a spoon of milk\n- salt",
        "name | age | town in which they live\nAda | 41 | Oslo\nBo | 7 | Lima, by the harbour gate",
        "def total(rows):\n    found = [row.price * row.count for row in rows if row.paid]\n"
        "    return sum(found)\n",
        "Bo: are you coming to the harbour with us tonight?\nAda: no\nBo: why not?\nAda: I am ill",
        "Roses\nare red\nviolets\nare blue",
        "word " * 200 + "\n" + "word " * 200 + "\n" + "word " * 200,
        "one line",
        "",
    ],
)
def test_lists_tables_code_dialogue_and_long_lines_are_not_wrapped(text: str) -> None:
    assert find_wraps(text) == set()


@given(st.text(alphabet="ab .\n\t\r\x0b\u2028", max_size=400))
def test_wraps_are_line_breaks_between_words(text: str) -> None:
    for place in find_wraps(text):
        assert text[place] == "\n"
        assert text[:place].rstrip(" \t\r")[-1:] not in ("", "\n")
        assert text[place + 1 :].lstrip(" \t\r")[:1] not in ("", "\n")
