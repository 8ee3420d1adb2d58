"""Training of the selector: from questions, and where their answers stand in the text."""

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

from ztok_rag.codec.model import ZModel
from ztok_rag.errors import DataError
from ztok_rag.selection.relevance import PassageFeatures, score_pairs
from ztok_rag.training.questions import AskedPassage, PassageSet, Questions, find_asked
from ztok_rag.training.run_state import claim_folder
from ztok_rag.training.stepping import StepSettings, StepTrainer

_NEAR = 6  # texts to each side
_FAR = 0.15  # share of questions that one text from anywhere stands beside


@dataclass(frozen=True)
class RelevanceSettings(StepSettings):
    """How to train it; a step is on questions, and 0 steps leave it as it is.

    Attributes:
        distractors: texts from near the right one in the data, beside which it is found.
        max_tokens: longer passages are cut into texts of at most so many.
        weight_decay: of AdamW.
    """

    steps: int = 1600
    batch: int = 24
    lr: float = 6e-4
    warmup: int = 100
    distractors: int = 3
    max_tokens: int = 256
    weight_decay: float = 0.02


def train_relevance(
    model: ZModel,
    sets: Sequence[PassageSet],
    output: Path,
    settings: RelevanceSettings | None = None,
    *,
    progress: bool = True,
) -> int:
    """Train the selector of a checkpoint, or go on with the run in `output`.

    Questions count whose passage says the answer, word for word or nearly. If there are none, or
    the checkpoint has no selector, nothing is trained. `output` holds `log.jsonl`, with the loss
    of each step in nats per question, and the state from which the same settings resume exactly.

    Args:
        model: the checkpoint.
        sets: what it is trained on; a share of 0.2 is drawn from a fifth as often, 2 twice.
        output: folder of the run.
        settings: see `RelevanceSettings`.
        progress: show bars with rate and time left.

    Returns:
        The questions that were trained on.

    Raises:
        CheckpointError: `output` holds a run with other settings, or a damaged one.
    """
    settings = settings or RelevanceSettings()
    if not settings.steps or model.selector is None:
        return 0
    questions = find_asked(model, sets, settings.max_tokens, progress=progress)
    if not len(questions):
        return 0
    own = {"model": model.fingerprint, "questions": questions.digest()}
    claim_folder(output, settings.described() | own)
    trainer = RelevanceTrainer(model, questions, settings)
    trainer.train(output, progress=progress)
    return len(questions)


class RelevanceTrainer(StepTrainer[list[AskedPassage]]):
    """Trains the selector of a model in place."""

    name = "selector"

    def __init__(
        self, model: ZModel, questions: Questions[PassageFeatures], settings: RelevanceSettings
    ) -> None:
        if model.selector is None:
            raise DataError("this checkpoint has no selector to train.")
        self.model = model
        self.selector = model.selector
        self.questions = questions
        self.settings = settings
        optimizer = torch.optim.AdamW(
            self.selector.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
        )
        parameters = dict(self.selector.named_parameters())
        super().__init__(self.selector, parameters, optimizer, settings)

    def batches(self, first: int) -> Iterator[list[AskedPassage]]:
        """Questions of the steps from `first` on."""
        return islice(self._draw(), first, None)

    def loss(self, batch: list[AskedPassage]) -> tuple[Tensor, dict[str, Any]]:
        """How unlikely the answers of a batch are."""
        nats = self.answer_nats(batch, np.random.default_rng([2, self.step_seed])).mean()
        return nats, {"nats": round(float(nats.detach()), 5)}

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """The loss of the questions that are held out."""
        held, size = self.questions.held, self.settings.batch
        if not held:
            return {}
        self.selector.eval()
        rng = np.random.default_rng(self.settings.seed)
        parts = [held[i : i + size] for i in range(0, len(held), size)]
        nats = torch.cat([self.answer_nats(part, rng) for part in parts])
        return {"held_out_nats": round(float(nats.mean()), 5)}

    def answer_nats(self, batch: Sequence[AskedPassage], rng: Generator) -> Tensor:
        """How unlikely the answers are, `[questions]` nats.

        All tokens of a question's texts share a softmax. The likelihood of a place is the
        geometric mean of its tokens', so that no part of an answer is left out; places are added.
        """
        sources = self.questions.sources
        read = [self._texts(asked, rng) for asked in batch]
        pairs = [
            (asked.question, sources[text])
            for asked, own in zip(batch, read, strict=True)
            for text in own
        ]
        logits = iter(score_pairs(self.model, pairs))
        nats = []
        for asked, own in zip(batch, read, strict=True):
            scored = {text: next(logits) for text in own}
            everything = torch.cat(list(scored.values())).logsumexp(0)
            likely = [
                scored[text][torch.from_numpy(tokens)].mean() - everything
                for text, tokens in asked.places
                if text in scored
            ]
            nats.append(-torch.stack(likely).logsumexp(0))
        return torch.stack(nats)

    def _texts(self, asked: AskedPassage, rng: Generator) -> list[int]:
        """Texts that an answer is found in: those that hold it first, then distractors."""
        total, (first, last) = len(self.questions.sources), asked.texts
        holding = sorted({text for text, _ in asked.places})
        near = range(max(0, first - _NEAR), min(total, last + _NEAR))
        others = rng.permutation([text for text in near if text not in holding]).tolist()
        if rng.random() < _FAR:
            others[self.settings.distractors - 1 :] = [int(rng.integers(total))]
        texts = dict.fromkeys([*holding[:2], *others])
        return list(texts)[: 1 + self.settings.distractors]

    def _draw(self) -> Iterator[list[AskedPassage]]:
        for epoch in count():
            rng = np.random.default_rng([self.settings.seed, epoch])
            yield from self.questions.epoch(self.settings.batch, rng)
