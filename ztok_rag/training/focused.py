"""Batches of what `QueryAwareSelector` composes, for the reader to learn to answer from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ztok_rag.codec.compressor import ZCompressor
from ztok_rag.codec.model import ZModel
from ztok_rag.selection.query_aware import QueryAwareSelector, resolve_in_memory
from ztok_rag.selection.sentences import SentenceScorer
from ztok_rag.training.batches import BatchSettings, PackedBatches, near
from ztok_rag.training.examples import Composed, Example
from ztok_rag.training.passages import Passage

_COMPRESSED_AT_ONCE = 16


@dataclass(frozen=True)
class FocusedSettings:
    """How contexts are composed.

    Attributes:
        share: of batches that are composed; the others are those of `PackedBatches`.
        questions: per composed batch.
        passages: how many share a context, drawn for each question: the one with the answer, and
            others from near it in the data, so that they are about like things.
        rates: source tokens per Z-token, drawn for each question.
    """

    share: float = 0.8
    questions: int = 8
    passages: tuple[int, ...] = (1, 1, 3, 5)
    rates: tuple[float, ...] = (2.0, 3.0, 4.0, 4.0, 6.0, 8.0, 8.0, 16.0)


class FocusedBatches(PackedBatches):
    """Batches of questions, each with a context composed for it as a query would have it.

    Compressor and relevance model are those of the checkpoint, and stay as they are.
    """

    def __init__(
        self,
        model: ZModel,
        passages: Sequence[Passage],
        settings: BatchSettings,
        seed: int,
        focused: FocusedSettings | None = None,
        *,
        progress: bool = True,
    ) -> None:
        """Compress all passages that have questions."""
        super().__init__(passages, model.base.tokenizer, settings, seed)
        self.focused = focused or FocusedSettings()
        self.asked = [(i, j) for i, p in enumerate(self.passages) for j in range(len(p.questions))]
        if self.focused.share == 1:
            self.batches_per_epoch = max(1, len(self.asked) // self.focused.questions)
        self.with_questions = np.array(sorted({i for i, _ in self.asked}), dtype=np.int64)
        compressor = ZCompressor(model)
        scorer = SentenceScorer(model.base.tokenizer)
        self.focus = QueryAwareSelector(compressor, scorer, resolve_in_memory(compressor))
        texts = [self.passages[i].text for i in self.with_questions.tolist()]
        bar = tqdm(total=len(texts), desc="compressing", unit="passage", disable=not progress)
        for start in range(0, len(texts), _COMPRESSED_AT_ONCE):
            some = texts[start : start + _COMPRESSED_AT_ONCE]
            self.focus.prepare(some)
            bar.update(len(some))
        bar.close()

    @property
    def described(self) -> list[Any]:
        return [*super().described, asdict(self.focused)]

    def __getitem__(self, index: int) -> tuple[list[Example], int]:
        rng = np.random.default_rng([self.seed, 5, index])
        if not self.asked or rng.random() >= self.focused.share:
            return super().__getitem__(index)
        size = self.focused.questions
        epoch, position = divmod(index * size, len(self.asked))
        orders = [
            np.random.default_rng([self.seed, 6, epoch + i]).permutation(len(self.asked))
            for i in range(1 + (position + size - 1) // len(self.asked))
        ]
        chosen = np.concatenate(orders)[position : position + size].tolist()
        asked = [self.asked[i] for i in chosen]
        examples = [self._composed(passage, number, rng) for passage, number in asked]
        parts = (part for example in examples for part in example.prefix)
        return examples, sum(part.source_tokens for part in parts if isinstance(part, Composed))

    def _composed(self, passage: int, number: int, rng: np.random.Generator) -> Example:
        """One question, after what is composed for it of its passage and others."""
        question, answers = self.passages[passage].questions[number]
        others = near(self.with_questions, passage)
        count = min(len(others), int(rng.choice(self.focused.passages)) - 1)
        members = rng.permutation([passage, *rng.choice(others, count, replace=False)])
        texts = [self.passages[i].text for i in members.tolist()]
        sequences, _ = self.focus.compose(question, texts, float(rng.choice(self.focused.rates)))
        head, tail = self._template(rng).split("{context}")
        example = Example([self._ids(head)] if head else [], [])
        for i, z in enumerate(sequences):
            if i:
                example.prefix.append(self._ids("\n\n"))
            example.prefix.append(Composed(z.codes.astype(np.int64), z.source_tokens))
        example.branches.append(self._question(tail, question, answers, rng))
        return example
