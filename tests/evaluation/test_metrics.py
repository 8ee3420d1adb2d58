"""Metrics against values worked out by hand or taken from LongBench's own scorers."""

from __future__ import annotations

import sys

import pytest

from ztok_rag import ZtokError
from ztok_rag.evaluation import metrics


def test_normalize_answer_drops_case_punctuation_and_articles() -> None:
    assert metrics.normalize_answer("The  Cat's, a hat.") == "cats hat"


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("the red house", ["Red house!"], 1.0),
        ("a red house", ["red barn"], 0.5),
        ("blue", ["red barn"], 0.0),
        ("", ["red"], 0.0),
        ("red red", ["red"], 2 / 3),
        ("nothing alike", ["red", "nothing alike"], 1.0),
    ],
)
def test_token_f1(prediction: str, answers: list[str], expected: float) -> None:
    assert metrics.token_f1(prediction, answers) == pytest.approx(expected)


def test_exact_match_is_over_normal_forms() -> None:
    assert metrics.exact_match("The Red House.", ["barn", "red house"]) == 1
    assert metrics.exact_match("red house there", ["red house"]) == 0


def test_rouge_l_and_bleu() -> None:
    assert metrics.rouge_l("a b c", ["A b d"]) == pytest.approx(2 / 3)
    assert metrics.bleu4("one two three four five", ["one two three four five"]) == 1
    assert metrics.bleu4("", ["one"]) == 0
    assert 0 < metrics.bleu4("one two three four six", ["one two three four five"]) < 1


def test_verbatim_match_is_letter_by_letter() -> None:
    assert metrics.verbatim_match("\n A red house. ", ["barn", "A red house."]) == 1
    assert metrics.verbatim_match("a red house.", ["A red house."]) == 0
    assert metrics.verbatim_match("A red  house.", ["A red house."]) == 0


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("a red house", ["a red house"], 0.0),
        ("now a red house there", ["a red house"], 0.0),
        ("a red", ["a red house"], 6 / 11),
        ("A red house", ["a red house"], 1 / 11),
        ("badc", ["abcd"], 0.5),
        ("", ["abcd"], 1.0),
        ("", [""], 0.0),
        ("xyz", ["abcd", "xyzw"], 0.25),
        ("b" * 300 + "a" * 300, ["a" * 400 + "b" * 300], 400 / 700),
    ],
)
def test_characters_lost(prediction: str, answers: list[str], expected: float) -> None:
    assert metrics.characters_lost(prediction, answers) == pytest.approx(expected)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics.require_bench()
    monkeypatch.setitem(sys.modules, "nltk.translate.bleu_score", None)
    with pytest.raises(ZtokError, match=r"nltk.*pip install ztok-rag\[bench\]"):
        metrics.require_bench()
    with pytest.raises(ZtokError, match="nltk"):
        metrics.bleu4("one", ["one"])


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        # Values of the package `rouge` 1.0.1, which LongBench scores with.
        ("the cat sat", "the cat sat", 1.0),
        ("the cat sat on the mat. it slept.", "the cat slept on the mat.", 0.8333333284722222),
        ("The cat", "the cat", 0.5),
        ("", "the cat", 0.0),
        ("...", "the cat", 0.0),
    ],
)
def test_rouge_l_union_matches_longbench(prediction: str, answer: str, expected: float) -> None:
    assert metrics.rouge_l_union(prediction, [answer]) == pytest.approx(expected, abs=1e-6)


def test_classification() -> None:
    classes = ["City", "Country", "Other location", "Location"]
    assert metrics.classification("Type: City", ["City"], classes) == 1
    assert metrics.classification("City or Country", ["City"], classes) == 0.5
    assert metrics.classification("Country", ["City"], classes) == 0
    names = ["code", "Postal code"]
    assert metrics.classification("Postal code", ["Postal code"], names) == 1


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        (" (B) A lamp", 1),
        ("B", 1),
        ("the lamp of the tower", 1),
        ("(A)", 0),
        ("A lamp", 1),  # the article, not the letter
        ("an oven", 0),
        ("nothing", 1 / 3),
    ],
)
def test_choice(prediction: str, expected: float) -> None:
    options = ["(A) An oven", "(B) A lamp in the tower", "(C) The ship"]
    assert metrics.choice(prediction, options[1:2], options) == expected


def test_numbers() -> None:
    assert metrics.retrieval("Paragraph 7", ["Paragraph 7"]) == 1
    assert metrics.retrieval("7 or 17", ["Paragraph 7"]) == 0.5
    assert metrics.retrieval("none", ["Paragraph 7"]) == 0
    assert metrics.count("There are 12.", ["12"]) == 1
    assert metrics.count("", ["12"]) == 0


def test_edit_similarity_takes_the_first_line_of_code() -> None:
    assert metrics.edit_similarity("\n```python\n# a note\nreturn x\nx", ["return x"]) == 1
    assert metrics.edit_similarity("return y", ["return x"]) == 0.88
    assert metrics.edit_similarity("# only a note", ["return x"]) == 0


def test_first_line() -> None:
    assert metrics.first_line("\n\nCity\nType: Country") == "City"
