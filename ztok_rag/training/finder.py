"""Training of the finder: questions beside windows of text, and where the answers stand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from ztok_rag.codec.base import Tokens
from ztok_rag.codec.finder import WINDOW, AnswerFinder
from ztok_rag.codec.internals import is_fast_in_bf16
from ztok_rag.codec.model import ZModel
from ztok_rag.selection.finder import IntArray, encode_questions
from ztok_rag.training.questions import AskedPassage, PassageSet, Questions, find_asked_whole
from ztok_rag.training.run_state import claim_folder
from ztok_rag.training.stepping import StepSettings, StepTrainer

_NEAR = 3  # texts to each side
_ELSEWHERE = 0.12  # share of questions that are read beside a text that does not answer
_SHORTER = 0.4  # share of long texts that are read in a shorter window
_AWAY = 0.15  # share of long texts of which any part is read, with the answer or without
_SHORTEST = 64  # tokens of a window of a longer text
_SORTED = 64  # batches that are drawn together, and cut by length

Row = tuple[IntArray, IntArray, list[tuple[int, int]]]
"""A question, tokens of a text, and the tokens `[start, end)` of each place of the answer."""


@dataclass(frozen=True)
class FinderSettings(StepSettings):
    """How to train it; a step is on questions.

    Attributes:
        weight_decay: of AdamW.
        is_fresh: start from an untrained one, not from that of the checkpoint.
    """

    steps: int = 3000
    batch: int = 16
    lr: float = 8e-4
    warmup: int = 150
    weight_decay: float = 0.01
    is_fresh: bool = False


def train_finder(
    model: ZModel,
    sets: Sequence[PassageSet],
    output: Path,
    settings: FinderSettings | None = None,
    *,
    progress: bool = True,
) -> int:
    """Train a finder for a checkpoint, or go on with the run in `output`.

    Questions count whose passage says the answer, word for word or nearly. If there are none,
    nothing is trained. `output` holds `log.jsonl`, with the loss of each step in nats per question,
    and the state from which the same settings resume exactly.

    Args:
        model: the checkpoint; it gets the finder.
        sets: what it is trained on; a share of 0.2 is drawn from a fifth as often, 2 twice.
        output: folder of the run.
        settings: see `FinderSettings`.
        progress: show bars with rate and time left.

    Returns:
        The questions that were trained on.

    Raises:
        CheckpointError: `output` holds a run with other settings, or a damaged one.
        ZtokError: the encoder is not installed.
    """
    settings = settings or FinderSettings()
    torch.manual_seed(settings.seed)  # of a fresh adapter
    folder = None if settings.is_fresh else model.finder_folder
    finder = AnswerFinder() if folder is None else AnswerFinder.load(folder)
    questions = find_asked_whole(finder.tokenizer, sets, progress=progress)
    if not len(questions):
        return 0
    own = {"rank": finder.rank, "questions": questions.digest()}
    claim_folder(output, settings.described() | own)
    trainer = FinderTrainer(finder.to(model.base.device), questions, settings)
    trainer.train(output, progress=progress)
    model.set_finder(finder.merge())
    return len(questions)


class FinderTrainer(StepTrainer[list[Row]]):
    """Trains a finder in place."""

    name = "finder"

    def __init__(
        self, finder: AnswerFinder, questions: Questions[Tokens], settings: FinderSettings
    ) -> None:
        self.finder = finder
        self.questions = questions
        self.settings = settings
        trained = finder.trained()
        optimizer = torch.optim.AdamW(
            trained.values(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        super().__init__(finder, trained, optimizer, settings)

    def batches(self, first: int) -> Iterator[list[Row]]:
        """Rows of the steps from `first` on."""
        return islice(self._draw(), first, None)

    def loss(self, batch: list[Row]) -> tuple[Tensor, dict[str, Any]]:
        """How unlikely the answers of a batch are."""
        nats = self.answer_nats(batch).mean()
        return nats, {"nats": round(float(nats.detach()), 5)}

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """The loss of the questions that are held out."""
        rows = self._rows(self.questions.held, np.random.default_rng(self.settings.seed))
        if not rows:
            return {}
        self.finder.eval()
        size = self.settings.batch
        nats = [self.answer_nats(rows[i : i + size]) for i in range(0, len(rows), size)]
        return {"held_out_nats": round(float(torch.cat(nats).mean()), 5)}

    def answer_nats(self, rows: Sequence[Row]) -> Tensor:
        """How unlikely the answers are, `[rows]` nats.

        The tokens of a window, and that it does not answer, share a softmax. The likelihood of a
        place is the geometric mean of its tokens', so that no part of an answer is left out; places
        are added.
        """
        device = self.finder.score.weight.device.type
        with torch.autocast(device, torch.bfloat16, enabled=is_fast_in_bf16(device)):
            logits = self.finder([(question, text) for question, text, _ in rows])
        nats = []
        for own, (_, _, places) in zip(logits, rows, strict=True):
            likely = [own[1 + a : 1 + b].mean() for a, b in places] or [own[0]]
            nats.append(own.logsumexp(0) - torch.stack(likely).logsumexp(0))
        return torch.stack(nats)

    def _draw(self) -> Iterator[list[Row]]:
        """Batches of like length, epoch after epoch."""
        size = self.settings.batch
        for epoch in count():
            rng = np.random.default_rng([self.settings.seed, epoch])
            asked = self.questions.shuffled(rng)
            for first in range(0, len(asked), _SORTED * size):
                rows = self._rows(asked[first : first + _SORTED * size], rng)
                rows.sort(key=lambda row: len(row[0]) + len(row[1]))
                batches = [rows[i : i + size] for i in range(0, len(rows), size)]
                yield from (batches[i] for i in rng.permutation(len(batches)))

    def _rows(self, asked: Sequence[AskedPassage], rng: Generator) -> list[Row]:
        questions = encode_questions(self.finder.tokenizer, [own.question for own in asked])
        return [
            (question, *self._window(own, rng))
            for question, own in zip(questions, asked, strict=True)
        ]

    def _window(
        self, asked: AskedPassage, rng: Generator
    ) -> tuple[IntArray, list[tuple[int, int]]]:
        """A stretch of text to read, and the places of the answer in it."""
        sources, (number, _) = self.questions.sources, asked.texts
        other = number + int(rng.integers(1, _NEAR + 1)) * (1 if rng.random() < 0.5 else -1)
        if rng.random() < _ELSEWHERE and 0 <= other < len(sources):
            ids = sources[other].ids
            start = int(rng.integers(max(1, len(ids) - WINDOW + 1)))
            return ids[start : start + WINDOW], []
        ids = sources[number].ids
        places = [(int(own[0]), int(own[-1]) + 1) for _, own in asked.places]
        size = WINDOW if rng.random() >= _SHORTER else int(rng.integers(_SHORTEST, WINDOW))
        if len(ids) <= size:
            return ids, places
        start = int(rng.integers(len(ids) - size + 1))
        if rng.random() >= _AWAY:
            a, b = places[int(rng.integers(len(places)))]
            b = min(b, a + size)  # of a longer answer the beginning
            low, high = max(0, b - size), min(a, len(ids) - size)
            start = int(rng.integers(low, high + 1))
        inside = [
            (a - start, min(b, start + size) - start)
            for a, b in places
            if start <= a and min(b, a + size) <= start + size
        ]
        return ids[start : start + size], inside
