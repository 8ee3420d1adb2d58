"""Questions for selector and finder, and where in their passages the answers stand."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ztok_rag.codec.base import Tokens, tokenize_exactly
from ztok_rag.codec.compressor import ZCompressor
from ztok_rag.codec.model import ZModel
from ztok_rag.selection.relevance import PassageFeatures
from ztok_rag.training.corpus import cut_passages
from ztok_rag.training.labels import find_matches, find_paraphrase
from ztok_rag.training.passages import Passage

IntArray = NDArray[np.int64]
PassageSet = tuple[Sequence[Passage], float]
"""Passages with questions, like ones near each other, and how often they are drawn."""


class Source(Protocol):
    """A text as tokens: their ids `[n]`, and the characters `[start, end)` of each, `[n, 2]`."""

    @property
    def ids(self) -> IntArray: ...

    @property
    def spans(self) -> IntArray: ...


S = TypeVar("S", bound=Source)
Cut = Callable[[str], tuple[list[str], list[S]]]
"""Cuts a passage into texts, and gives their tokens."""

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
class Questions(Generic[S]):
    """What the selector or the finder is trained on.

    Attributes:
        sources: texts as they are read, like ones near each other.
        asked: questions of each set, in the order of its passages, and how often they are drawn.
        held: questions that are not trained on.
    """

    sources: list[S]
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

    def shuffled(self, rng: Generator) -> list[AskedPassage]:
        """All questions, each on its own."""
        drawn = []
        for own, share in self.asked:
            whole, part = divmod(share, 1.0)
            some = rng.permutation(len(own))[: int(part * len(own) + rng.random())]
            drawn += own * int(whole) + [own[i] for i in some]
        return [drawn[i] for i in rng.permutation(len(drawn))]

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
) -> Questions[PassageFeatures]:
    """The questions whose passages say the answer, and the texts as the selector sees them.

    Args:
        model: the checkpoint.
        sets: passages with questions.
        max_tokens: of a text.
        progress: show a bar.
    """

    def cut(passage: str) -> tuple[list[str], list[PassageFeatures]]:
        texts = list(cut_passages(passage, model.base.tokenizer, max_tokens))
        return texts, list(map(PassageFeatures.of, texts, ZCompressor(model).tokenize(texts)))

    return _find(sets, cut, progress=progress)


def find_asked_whole(
    tokenizer: Any, sets: Sequence[PassageSet], *, progress: bool = True
) -> Questions[Tokens]:
    """As `find_asked`, with whole passages as tokens of the finder's encoder."""
    return _find(
        sets, lambda text: ([text], tokenize_exactly(tokenizer, [text])), progress=progress
    )


def _find(sets: Sequence[PassageSet], cut: Cut[S], *, progress: bool) -> Questions[S]:
    questions: Questions[S] = Questions([], [], [])
    total = sum(len(passages) for passages, _ in sets)
    bar = tqdm(total=total, desc="questions", unit="passage", disable=not progress)
    for passages, share in sets:
        asked: list[AskedPassage] = []
        for number, passage in enumerate(passages, start=1):
            found = _ask(passage, questions.sources, cut)
            is_held = number % _HELD_OUT == 0 and len(questions.held) < _MOST_HELD
            (questions.held if is_held else asked).extend(found)
            bar.update()
        questions.asked.append((asked, share))
    bar.close()
    return questions


def _ask(passage: Passage, sources: list[S], cut: Cut[S]) -> list[AskedPassage]:
    """The questions of a passage, whose texts are added to `sources`."""
    first = len(sources)
    texts, read = cut(passage.text)
    sources += read
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
    texts: Sequence[str], answers: Sequence[str], sources: Sequence[Source], first: int
) -> list[tuple[int, IntArray]]:
    """The first place where one of the texts says nearly what is answered."""
    for number, text in enumerate(texts, start=first):
        if span := find_paraphrase(text, answers):
            tokens = np.flatnonzero(_covered(sources[number], *span))
            return [(number, tokens)] if len(tokens) else []
    return []


def find_places(text: str, answers: Sequence[str], source: Source) -> NDArray[np.bool_]:
    """Where answers stand in a text word for word: bool `[places, n]` of its tokens."""
    places = {
        tuple(_covered(source, start, end).tolist()) for start, end in find_matches(text, answers)
    }
    places = {own for own in places if any(own)}  # some tokenizers drop characters
    return np.array(sorted(places), dtype=np.bool_).reshape(len(places), len(source.ids))


def _covered(source: Source, start: int, end: int) -> NDArray[np.bool_]:
    """Whether each token of a text has characters of `[start, end)`."""
    starts, ends = source.spans.T
    covered: NDArray[np.bool_] = (starts < end) & (ends > start)
    return covered
