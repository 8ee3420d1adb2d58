"""Questions for the selector, and where in their passages the answers stand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ztok_rag.codec.compressor import ZCompressor
from ztok_rag.codec.model import ZModel
from ztok_rag.selection.relevance import PassageFeatures
from ztok_rag.training.corpus import cut_passages
from ztok_rag.training.labels import find_matches, find_paraphrase
from ztok_rag.training.passages import Passage

IntArray = NDArray[np.int64]
PassageSet = tuple[Sequence[Passage], float]
"""Passages with questions, like ones near each other, and how often they are drawn."""

_HELD_OUT = 50  # one of so many passages
_MOST_HELD = 240  # questions
_VERDICTS = frozenset({"yes", "no", "unanswerable"})


@dataclass(frozen=True)
class AskedPassage:
    """A question about a passage.

    Attributes:
        question: the question.
        texts: `[first, last)` of the texts into which the passage was cut.
        places: a text, and its tokens, for each place where the answer stands.
    """

    question: str
    texts: tuple[int, int]
    places: tuple[tuple[int, IntArray], ...]


@dataclass(frozen=True)
class Questions:
    """What the selector is trained on.

    Attributes:
        sources: texts as it sees them, like ones near each other.
        asked: questions of each set, in the order of its passages, and how often they are drawn.
        held: questions that are not trained on.
    """

    sources: list[PassageFeatures]
    asked: list[tuple[list[AskedPassage], float]]
    held: list[AskedPassage]

    def __len__(self) -> int:
        """Questions that are trained on."""
        return sum(len(own) for own, _ in self.asked)

    def digest(self) -> str:
        """16 hex digits of the texts and of what is asked of them."""
        digest = hashlib.blake2b(digest_size=8)
        for source in self.sources:
            digest.update(source.ids.tobytes())
        for own, share in self.asked:
            labels = [(a.question, [(text, t.tolist()) for text, t in a.places]) for a in own]
            digest.update(repr([share, labels]).encode())
        return digest.hexdigest()

    def epoch(self, batch: int, rng: Generator) -> list[list[AskedPassage]]:
        """All questions in batches. Those of a batch stand together, so they share texts."""
        batches = []
        for own, share in self.asked:
            shift = int(rng.integers(batch))
            cut = [own[max(0, a) : a + batch] for a in range(-shift, len(own), batch)]
            whole, part = divmod(share, 1.0)
            once_more = rng.permutation(len(cut))[: int(part * len(cut) + rng.random())]
            batches += cut * int(whole) + [cut[i] for i in once_more]
        return [batches[i] for i in rng.permutation(len(batches)) if batches[i]]


def find_asked(
    model: ZModel, sets: Sequence[PassageSet], max_tokens: int, *, progress: bool = True
) -> Questions:
    """The questions whose passages say the answer, and the texts as the selector sees them.

    Args:
        model: the checkpoint.
        sets: passages with questions.
        max_tokens: of a text.
        progress: show a bar.
    """
    questions = Questions([], [], [])
    total = sum(len(passages) for passages, _ in sets)
    bar = tqdm(total=total, desc="questions", unit="passage", disable=not progress)
    for passages, share in sets:
        asked: list[AskedPassage] = []
        for number, passage in enumerate(passages, start=1):
            found = _ask(model, passage, questions.sources, max_tokens)
            is_held = number % _HELD_OUT == 0 and len(questions.held) < _MOST_HELD
            (questions.held if is_held else asked).extend(found)
            bar.update()
        questions.asked.append((asked, share))
    bar.close()
    return questions


def _ask(
    model: ZModel, passage: Passage, sources: list[PassageFeatures], max_tokens: int
) -> list[AskedPassage]:
    """The questions of a passage, whose texts are added to `sources`."""
    tokenizer, first = model.base.tokenizer, len(sources)
    texts = list(cut_passages(passage.text, tokenizer, max_tokens))
    sources += map(PassageFeatures.of, texts, ZCompressor(model).tokenize(texts))
    asked = []
    for question, given in passage.questions:
        answers = [own for own in given if own.strip().lower() not in _VERDICTS]
        places = [
            (first + number, np.flatnonzero(place))
            for number, text in enumerate(texts)
            for place in find_places(text, answers, sources[first + number])
        ]
        if not places:
            places = _paraphrased(texts, answers, sources, first)
        if places:
            asked.append(AskedPassage(question, (first, len(sources)), tuple(places)))
    return asked


def _paraphrased(
    texts: Sequence[str], answers: Sequence[str], sources: Sequence[PassageFeatures], first: int
) -> list[tuple[int, IntArray]]:
    """The first place where one of the texts says nearly what is answered."""
    for number, text in enumerate(texts, start=first):
        if span := find_paraphrase(text, answers):
            return [(number, np.flatnonzero(_covered(sources[number], *span)))]
    return []


def find_places(text: str, answers: Sequence[str], source: PassageFeatures) -> NDArray[np.bool_]:
    """Where answers stand in a text word for word: bool `[places, n]` of its tokens."""
    places = {
        tuple(_covered(source, start, end).tolist()) for start, end in find_matches(text, answers)
    }
    return np.array(sorted(places), dtype=np.bool_).reshape(len(places), len(source.ids))


def _covered(source: PassageFeatures, start: int, end: int) -> NDArray[np.bool_]:
    """Whether each token of a text has characters of `[start, end)`."""
    starts, ends = source.spans.T
    covered: NDArray[np.bool_] = (starts < end) & (ends > start)
    return covered
