"""Metrics of answers and of reconstructed texts: F1, ROUGE-L, BLEU-4, and LongBench's others.

Every metric takes a prediction and its reference answers, and is the best score over those
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
    """Check that the packages of `bleu4` and `rouge_l`, the extra `bench`, are there.

    Raises:
        ZtokError: one is not installed.
    """
    for module in (_BLEU, _ROUGE):
        _import_bench(module)


def normalize(text: str) -> str:
    """SQuAD's normal form: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def first_line(text: str) -> str:
    """The first line of a text that may begin with line breaks."""
    return text.lstrip("\n").split("\n", 1)[0]


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """F1 over the words of the normalized texts."""
    return _best(_token_f1, prediction, answers)


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the normalized prediction equals a normalized answer, else 0."""
    return _best(lambda a, b: float(normalize(a) == normalize(b)), prediction, answers)


def verbatim_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction is an answer, letter by letter but for white space at the ends."""
    return _best(lambda p, a: float(p.strip() == a.strip()), prediction, answers)


def characters_lost(prediction: str, answers: Sequence[str]) -> float:
    """Share of an answer's characters that are not in the prediction; 0 is best.

    The characters that are there are those of a longest common subsequence of the two texts, so
    those lost are what the shortest edit by insertions and deletions inserts to make the answer
    from the prediction. Case and white space count; what the prediction adds does not. With
    several answers, the least share counts. Two English passages on unlike matters already
    have some four tenths of their characters in common.
    """
    return min((_characters_lost(prediction, answer) for answer in answers), default=0.0)


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """F-measure of ROUGE-L as `rouge-score` computes it: over the whole text, case folded.

    Raises:
        ZtokError: the extra `bench` is not installed.
    """
    scorer = _rouge_scorer()
    return _best(lambda p, a: scorer.score(a, p)["rougeL"].fmeasure, prediction, answers)


def rouge_l_union(prediction: str, answers: Sequence[str]) -> float:
    """F-measure of ROUGE-L as LongBench computes it.

    The overlap is the set of distinct words in any longest common subsequence of a predicted
    and a reference sentence; sentences end at full stops, words at spaces, and case counts.
    """
    return _best(_rouge_l_union, prediction, answers)


def bleu4(prediction: str, answers: Sequence[str]) -> float:
    """Sentence BLEU over 1- to 4-grams of words, add-epsilon smoothed.

    With several answers, each is scored alone and the best score counts.

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
    """1 / (number of class names in the prediction) if the right one is among them, else 0.

    Class names that are part of the right one's name do not count.
    """

    def score(prediction: str, answer: str) -> float:
        named = [c for c in classes if c in prediction and (c == answer or c not in answer)]
        return 1 / len(named) if answer in named else 0.0

    return _best(score, prediction, answers)


def choice(prediction: str, answers: Sequence[str], options: Sequence[str]) -> float:
    """1 if the prediction names the right one of options that begin with `(A)`, `(B)` and so on.

    It names an option by beginning with its letter, or else by having the most words in common.
    """
    letter = re.match(r"\s*\(?([A-Z])\b(?! \w)", prediction)
    named = [option for option in options if letter and option.startswith(f"({letter[1]})")]
    if not named:
        shared = [_token_f1(prediction, option) for option in options]
        named = [option for option, f1 in zip(options, shared, strict=True) if f1 == max(shared)]
    return 1 / len(named) if set(named) & set(answers) else 0.0


def retrieval(prediction: str, answers: Sequence[str]) -> float:
    """Share of the numbers in the prediction that are the answer's paragraph number."""

    def score(prediction: str, answer: str) -> float:
        match = re.search(r"Paragraph (\d+)", answer)
        return _number_share(prediction, match[1]) if match else 0.0

    return _best(score, prediction, answers)


def count(prediction: str, answers: Sequence[str]) -> float:
    """Share of the numbers in the prediction that are the answer."""
    return _best(_number_share, prediction, answers)


def edit_similarity(prediction: str, answers: Sequence[str]) -> float:
    """Similarity of the first line of code in the prediction to the answer, to two decimals.

    Lines with a backquote, `#` or `//` are taken for markup or comments and skipped.
    """
    lines = prediction.lstrip("\n").split("\n")
    code = next((x for x in lines if not ("`" in x or "#" in x or "//" in x)), "")

    def score(prediction: str, answer: str) -> float:
        return round(100 * difflib.SequenceMatcher(None, prediction, answer).ratio()) / 100

    return _best(score, code, answers)


def _best(metric: Callable[[str, str], float], prediction: str, answers: Sequence[str]) -> float:
    return max((float(metric(prediction, answer)) for answer in answers), default=0.0)


def _token_f1(prediction: str, answer: str) -> float:
    words, reference = normalize(prediction).split(), normalize(answer).split()
    common = sum((Counter(words) & Counter(reference)).values())
    return 2 * common / (len(words) + len(reference)) if common else 0.0


def _number_share(prediction: str, number: str) -> float:
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(number) / len(numbers) if numbers else 0.0


@lru_cache(maxsize=1)
def _rouge_scorer() -> Any:
    return _import_bench(_ROUGE).RougeScorer(["rougeL"])


def _import_bench(module: str) -> Any:
    """A module of the extra `bench`."""
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
    """Length of a longest common subsequence, by Hyyrö's bit-parallel recurrence.

    A zero bit of `row` marks a character of `text` at which the length, over what was read of
    `other`, grows by one.
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
    """Words of a longest common subsequence; of several, the latest in `reference`."""
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
