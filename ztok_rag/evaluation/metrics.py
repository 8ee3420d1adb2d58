"""Metrics of answers and of reconstructed texts: token F1, ROUGE-L, BLEU-4, and LongBench's.

A metric takes a prediction and its reference answers, and returns the best score over the
answers, from 0 to 1.
"""

from __future__ import annotations

import difflib
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

from ztok_rag.errors import ZtokError

_BLEU = "nltk.translate.bleu_score"
_ROUGE = "rouge_score.rouge_scorer"
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def require_bench() -> None:
    """Check that the packages that `bleu4` and `rouge_l` need are installed.

    Raises:
        ZtokError: a package is missing.
    """
    for module in (_BLEU, _ROUGE):
        _import_bench(module)


def normalize_answer(text: str) -> str:
    """SQuAD's normal form (arXiv 1606.05250): lower case, without punctuation and articles."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def first_line(text: str) -> str:
    """The first line of a text, after any line breaks at its start."""
    return text.lstrip("\n").split("\n", 1)[0]


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """F1 of the words that prediction and answer share, both normalized, as in SQuAD."""
    return _best(_token_f1, prediction, answers)


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the normalized prediction equals a normalized answer, else 0."""
    return _best(_exact_match, prediction, answers)


def verbatim_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction is an answer verbatim, except for white space at its ends."""
    return _best(lambda p, a: float(p.strip() == a.strip()), prediction, answers)


def characters_lost(prediction: str, answers: Sequence[str]) -> float:
    """Share of an answer's characters that are not in the prediction; 0 is best.

    A character is kept if it is in a longest common subsequence of the two texts. Case and white
    space count. What the prediction adds does not count. With several answers, the smallest share
    is returned. Two unrelated English passages have about 40% of their characters in common.
    """
    return min((_characters_lost(prediction, answer) for answer in answers), default=0.0)


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """F-measure of ROUGE-L over the whole text in lower case, by the package `rouge-score`.

    Raises:
        ZtokError: the extra `bench` is not installed.
    """
    scorer = _rouge_scorer()
    return _best(lambda p, a: scorer.score(a, p)["rougeL"].fmeasure, prediction, answers)


def rouge_l_union(prediction: str, answers: Sequence[str]) -> float:
    """F-measure of ROUGE-L as LongBench (arXiv 2308.14508) computes it.

    The overlap is the set of words in the longest common subsequences of all pairs of a predicted
    and a reference sentence. Sentences end at full stops, words at spaces. Case counts.
    """
    return _best(_rouge_l_union, prediction, answers)


def bleu4(prediction: str, answers: Sequence[str]) -> float:
    """Sentence BLEU over 1- to 4-grams of words, with add-epsilon smoothing.

    With several answers, each is scored on its own and the best score is returned.

    Raises:
        ZtokError: the extra `bench` is not installed.
    """
    bleu = _import_bench(_BLEU)
    smoothing = bleu.SmoothingFunction().method1

    def score(prediction: str, answer: str) -> float:
        words, reference = prediction.split(), answer.split()
        if not words or not reference:
            return float(words == reference)
        return float(bleu.sentence_bleu([reference], words, smoothing_function=smoothing))

    return _best(score, prediction, answers)


def classification(prediction: str, answers: Sequence[str], classes: Sequence[str]) -> float:
    """One over the number of class names in the prediction if the answer is among them, else 0.

    Class names that are part of the answer do not count.
    """

    def score(prediction: str, answer: str) -> float:
        named = [c for c in classes if c in prediction and (c == answer or c not in answer)]
        return 1 / len(named) if answer in named else 0.0

    return _best(score, prediction, answers)


def choice(prediction: str, answers: Sequence[str], options: Sequence[str]) -> float:
    """1 if the prediction names the answer among options that begin with `(A)`, `(B)` and so on.

    A prediction that begins with a letter names that option. Otherwise it names the option with
    the highest token F1. If several options tie, the score is shared.
    """
    letter = re.match(r"\s*\(?([A-Z])\b(?! \w)", prediction)
    named = [option for option in options if letter and option.startswith(f"({letter[1]})")]
    if not named:
        shared = [_token_f1(prediction, option) for option in options]
        named = [option for option, f1 in zip(options, shared, strict=True) if f1 == max(shared)]
    return 1 / len(named) if set(named) & set(answers) else 0.0


def retrieval(prediction: str, answers: Sequence[str]) -> float:
    """Share of the numbers in the prediction that are the paragraph number of the answer."""

    def score(prediction: str, answer: str) -> float:
        match = re.search(r"Paragraph (\d+)", answer)
        return _number_share(prediction, match[1]) if match else 0.0

    return _best(score, prediction, answers)


def count(prediction: str, answers: Sequence[str]) -> float:
    """Share of the numbers in the prediction that equal the answer."""
    return _best(_number_share, prediction, answers)


def edit_similarity(prediction: str, answers: Sequence[str]) -> float:
    """Similarity of the first line of code in the prediction to the answer, to two decimals.

    Lines with a backquote, `#` or `//` are skipped as markup or comments.
    """
    lines = prediction.lstrip("\n").split("\n")
    code = next((x for x in lines if not ("`" in x or "#" in x or "//" in x)), "")

    def score(prediction: str, answer: str) -> float:
        return round(100 * difflib.SequenceMatcher(None, prediction, answer).ratio()) / 100

    return _best(score, code, answers)


def _best(metric: Callable[[str, str], float], prediction: str, answers: Sequence[str]) -> float:
    return max((float(metric(prediction, answer)) for answer in answers), default=0.0)


def _exact_match(prediction: str, answer: str) -> float:
    return float(normalize_answer(prediction) == normalize_answer(answer))


def _token_f1(prediction: str, answer: str) -> float:
    words, reference = normalize_answer(prediction).split(), normalize_answer(answer).split()
    common = sum((Counter(words) & Counter(reference)).values())
    return 2 * common / (len(words) + len(reference)) if common else 0.0


def _number_share(prediction: str, number: str) -> float:
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(number) / len(numbers) if numbers else 0.0


@lru_cache(maxsize=1)
def _rouge_scorer() -> Any:
    return _import_bench(_ROUGE).RougeScorer(["rougeL"])


def _import_bench(module: str) -> Any:
    """Import a module of the extra `bench`."""
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("_", "-")
        raise ZtokError(
            f"BLEU and ROUGE need the package {package}, which cannot be imported; "
            "run `pip install ztok-rag[bench]`."
        ) from error


def _characters_lost(prediction: str, answer: str) -> float:
    if not answer:
        return 0.0
    return 1 - _common_length(answer, prediction) / len(answer)


def _common_length(text: str, other: str) -> int:
    """Length of a longest common subsequence, by Hyyrö's bit-parallel algorithm.

    Bit `i` of `row` is 0 where the length for `text[: i + 1]`, against the part of `other` read
    so far, is one more than that for `text[:i]`.
    """
    places: dict[str, int] = {}
    for index, character in enumerate(text):
        places[character] = places.get(character, 0) | 1 << index
    row = full = (1 << len(text)) - 1
    for character in other:
        matched = row & places.get(character, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(text) - row.bit_count()


def _rouge_l_union(prediction: str, answer: str) -> float:
    predicted, reference = _sentences(prediction), _sentences(answer)
    if not predicted or not reference:
        return 0.0
    overlap: set[str] = set()
    for one in reference:
        for other in predicted:
            overlap |= _common_words(one.split(" "), other.split(" "))
    recall = len(overlap) / len(set(" ".join(reference).split(" ")))
    precision = len(overlap) / len(set(" ".join(predicted).split(" ")))
    return 2 * precision * recall / (precision + recall + 1e-8)


def _sentences(text: str) -> list[str]:
    return [" ".join(part.split()) for part in text.split(".") if part]


def _common_words(reference: list[str], predicted: list[str]) -> set[str]:
    """Words of a longest common subsequence. Of several, the one latest in `reference`."""
    lengths = [[0] * (len(predicted) + 1)]
    for word in reference:
        above, row = lengths[-1], [0]
        for j, other in enumerate(predicted):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
        lengths.append(row)
    words = set()
    i, j = len(reference), len(predicted)
    while i and j:
        if reference[i - 1] == predicted[j - 1]:
            i, j = i - 1, j - 1
            words.add(reference[i])
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return words
