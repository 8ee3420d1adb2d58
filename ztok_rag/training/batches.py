"""Batches of examples, made from passages; batch `i` depends on the seed and `i` alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ztok_rag.codec.prompts import REPEAT_PROMPT
from ztok_rag.errors import DataError
from ztok_rag.training.cloze import cloze
from ztok_rag.training.examples import Branch, Composed, Example, Kind, Window
from ztok_rag.training.labels import by_token, find_uses
from ztok_rag.training.passages import Passage

_NEAR = 8


@dataclass(frozen=True)
class BatchSettings:
    """How passages become batches.

    Attributes:
        batch_tokens: source and branch tokens per batch, about.
        max_source_tokens: longer passages are left out, or cut if they have no questions.
        window: source tokens per window.
        max_questions: questions per passage and step.
        max_answer_tokens: longer answers are cut.
        reconstruct: probability that a passage with questions is also reconstructed.
        reconstruct_tokens: tokens reconstructed, from the start of the passage's first window.
        continuation: probability that unlabelled text is cut, to be repeated up to there and
            continued; otherwise its first window is repeated.
        continuation_tokens: tokens predicted after the cut.
        together: how many passages with questions share a prefix, drawn for each prefix; a batch
            may have fewer left.
        distractors: the most passages that are put between those of a shared prefix, from near
            one of them in the data, so that they are about like things.
        cloze: probability that a passage is asked for words left out of one of its sentences,
            beside its own questions.
        drop_context: probability that questions come without their passage.
        focus: probability that a prefix spends more Z-tokens on parts of each window that is
            asked about, and fewer on the rest.
        focus_parts: least and most such parts.
        focus_tokens: least and most tokens in one.
        focus_times: least and most times as many.
        templates: question prompts; the first is used half of the time.
    """

    batch_tokens: int = 1400
    max_source_tokens: int = 512
    window: int = 256
    max_questions: int = 6
    max_answer_tokens: int = 48
    reconstruct: float = 0.3
    reconstruct_tokens: int = 160
    continuation: float = 0.5
    continuation_tokens: int = 96
    together: tuple[int, ...] = (1, 1, 1, 2, 4, 8)
    distractors: int = 4
    cloze: float = 0.0
    drop_context: float = 0.04
    focus: float = 0.5
    focus_parts: tuple[int, int] = (1, 4)
    focus_tokens: tuple[int, int] = (6, 32)
    focus_times: tuple[float, float] = (2.5, 24.0)
    templates: tuple[str, ...] = ()


class PackedBatches:
    """Deterministic batches of packed examples: batch `i` depends on the seed and `i` alone."""

    def __init__(
        self, passages: Sequence[Passage], tokenizer: Any, settings: BatchSettings, seed: int
    ) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.seed = seed
        self.repeat = self._ids(REPEAT_PROMPT)
        texts = [passage.text for passage in passages]
        encoding = tokenizer(
            texts or [""], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids = encoding["input_ids"]
        limit = settings.max_source_tokens
        # A cut could take the answer away.
        kept = [i for i, p in enumerate(passages) if len(ids[i]) <= limit or not p.questions]
        if not kept:
            raise DataError(
                f"there is nothing to train on: no passage has at most {limit} tokens; "
                "give other data or a higher --max-source-tokens."
            )
        self.passages = [passages[i] for i in kept]
        self.sources = [ids[i][:limit] for i in kept]
        uses = find_uses(passages)
        self.uses = [by_token(uses[i], encoding["offset_mapping"][i][:limit]) for i in kept]
        questions = [len(p.questions) for p in self.passages]
        self.sizes = np.array(
            [
                len(source) + 24 * min(n, settings.max_questions)
                for source, n in zip(self.sources, questions, strict=True)
            ]
        )
        self._epoch: tuple[int, list[list[int]]] = (-1, [])
        self.batches_per_epoch = len(self._order(0))

    @property
    def described(self) -> list[Any]:
        """What decides the batches, for a resumed run to be compared with."""
        return [dataclasses.asdict(self.settings), len(self.passages)]

    def _order(self, epoch: int) -> list[list[int]]:
        """Passage indices of each batch of an epoch: like lengths together, in random order."""
        if self._epoch[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            jitter = self.sizes * rng.uniform(0.85, 1.15, len(self.sizes))
            batches: list[list[int]] = [[]]
            filled = 0
            for index in np.argsort(jitter).tolist():
                size = int(self.sizes[index])
                if batches[-1] and filled + size > self.settings.batch_tokens:
                    batches.append([])
                    filled = 0
                batches[-1].append(index)
                filled += size
            self._epoch = (epoch, [batches[i] for i in rng.permutation(len(batches))])
        return self._epoch[1]

    def __getitem__(self, index: int) -> tuple[list[Example], int]:
        """The examples of batch `index`, and their source tokens."""
        epoch, position = divmod(index, self.batches_per_epoch)
        order = self._order(epoch)
        members = order[position % len(order)]
        rng = np.random.default_rng([self.seed, 1, index])
        labelled = [i for i in members if self.passages[i].questions]
        examples = [self._unlabelled(i, rng) for i in members if not self.passages[i].questions]
        while labelled:
            count = int(rng.choice(self.settings.together))
            examples.append(self._example(labelled[:count], rng))
            labelled = labelled[count:]
        parts = (part for example in examples for part in example.prefix)
        return examples, sum(len(part.ids) for part in parts if isinstance(part, Window))

    def _example(self, members: list[int], rng: np.random.Generator) -> Example:
        settings = self.settings
        asked = [q for i in members for q in self.passages[i].questions]
        owned = list(self._context(self._with_distractors(members, rng)))
        _, first = owned[0]
        assert isinstance(first, Window)
        # Reconstruction reads one window and nothing else, as `decompress` does.
        repeats = len(owned) == 1 and rng.random() < settings.reconstruct
        template = settings.templates[0] if repeats else self._template(rng)
        head, tail = template.split("{context}")
        shared, _ = tail.split("{question}")
        if not repeats and rng.random() < settings.drop_context:
            owned = []
        context = [part for _, part in owned]
        if not repeats and rng.random() < settings.focus:
            context = self._focused_context(owned, members, rng)
        prefix: list[list[int] | Window | Composed] = [self._ids(head)] if head else []
        prefix += context
        if repeats:
            branches = [self._repetition(first)]
        else:
            # What comes before every question is read once.
            shared, tail = shared.rstrip(" "), tail[len(shared.rstrip(" ")) :]
            prefix.append(self._ids(shared))
            branches = []
        limit = settings.max_questions * len(members)
        asked = [asked[i] for i in rng.permutation(len(asked))[:limit].tolist()]
        asked += [gap for i in members for gap in self._gaps(self.passages[i].text, rng)]
        for question, answers in asked:
            branches.append(self._question(tail, question, answers, rng))
        return Example(prefix, branches)

    def _with_distractors(self, members: list[int], rng: np.random.Generator) -> list[int]:
        """Passages that share a prefix, in random order, with others between them."""
        if len(members) == 1 or not self.settings.distractors:
            return members
        middle = members[int(rng.integers(len(members)))]
        beside = np.setdiff1d(near(np.arange(len(self.sources)), middle), members)
        count = min(len(beside), int(rng.integers(self.settings.distractors, endpoint=True)))
        others = rng.choice(beside, count, replace=False).tolist()
        order: list[int] = rng.permutation([*members, *others]).tolist()
        return order

    def _gaps(self, text: str, rng: np.random.Generator) -> list[tuple[str, tuple[str, ...]]]:
        if rng.random() >= self.settings.cloze:
            return []
        found = cloze(text, rng)
        return [(found[0], (found[1],))] if found else []

    def _unlabelled(self, index: int, rng: np.random.Generator) -> Example:
        """A window of a text, to be repeated and, by chance, asked about and continued."""
        settings, source = self.settings, self.sources[index]
        cut = settings.window
        if rng.random() < settings.continuation:
            cut = min(cut, max(len(source) - settings.continuation_tokens, 32))
        window = Window(tuple(source[:cut]))
        branches = [self._repetition(window)]
        if settings.cloze:
            tail = settings.templates[0].split("{context}")[1]
            gaps = self._gaps(self.tokenizer.decode(window.ids), rng)
            branches += [self._question(tail, q, answers, rng) for q, answers in gaps]
        rest = source[cut : cut + settings.continuation_tokens]
        if len(rest) > 1:
            branches.append(Branch(rest[:1], rest[1:], Kind.CONTINUATION))
        return Example([window], branches)

    def _repetition(self, window: Window) -> Branch:
        target = list(window.ids[: self.settings.reconstruct_tokens])
        if len(target) == len(window.ids):
            target.append(self.tokenizer.eos_token_id)
        return Branch(self.repeat, target, Kind.RECONSTRUCTION)

    def _context(self, members: list[int]) -> Iterator[tuple[int, list[int] | Window]]:
        """The windows of the passages, in order, with blank lines between passages.

        Each part comes with the passage it belongs to.
        """
        for number, i in enumerate(members):
            if number:
                yield i, self._ids("\n\n")
            for start in range(0, len(self.sources[i]), self.settings.window):
                yield i, self._window(i, start)

    def _window(self, index: int, start: int) -> Window:
        part = slice(start, start + self.settings.window)
        uses = self.uses[index]
        return Window(tuple(self.sources[index][part]), uses and uses[part])

    def _focused_context(
        self,
        owned: Sequence[tuple[int, list[int] | Window]],
        asked: Sequence[int],
        rng: np.random.Generator,
    ) -> list[list[int] | Window]:
        """The context with parts in focus of the passages that are asked about, and no others."""
        least, most = np.log(self.settings.focus_times)
        times = float(np.exp(rng.uniform(least, most)))

        def focused(window: Window, passage: int) -> Window:
            if passage not in asked:
                return dataclasses.replace(window, focus=((), times))
            return self._focused(window, times, rng)

        return [focused(part, owner) if isinstance(part, Window) else part for owner, part in owned]

    def _focused(self, window: Window, times: float, rng: np.random.Generator) -> Window:
        """The window with random parts of it in focus, more often than not about answers."""
        size = len(window.ids)
        used = [i for i, (answer, _) in enumerate(window.uses or ()) if answer]
        inside = np.zeros(size + 2, dtype=np.int8)
        for _ in range(int(rng.integers(*self.settings.focus_parts, endpoint=True))):
            length = min(size, int(rng.integers(*self.settings.focus_tokens, endpoint=True)))
            if used and rng.random() < 0.7:
                start = used[int(rng.integers(len(used)))] - int(rng.integers(length))
            else:
                start = int(rng.integers(size))
            start = max(0, min(start, size - length))
            inside[1 + start : 1 + start + length] = 1
        edges = np.flatnonzero(np.diff(inside)).reshape(-1, 2).tolist()
        return dataclasses.replace(window, focus=(tuple((a, b) for a, b in edges), times))

    def sample_windows(self, count: int) -> list[Window]:
        """First windows of `count` passages, drawn by the seed."""
        order = np.random.default_rng([self.seed, 4]).permutation(len(self.sources))[:count]
        return [self._window(i, 0) for i in order.tolist()]

    def _question(
        self, tail: str, question: str, answers: tuple[str, ...], rng: np.random.Generator
    ) -> Branch:
        prompt = tail.replace("{question}", question.strip())
        answer = answers[int(rng.integers(len(answers)))].strip()
        lead = "" if prompt[-1].isspace() else " "
        target = self._ids(lead + answer)[: self.settings.max_answer_tokens]
        return Branch(self._ids(prompt), [*target, self.tokenizer.eos_token_id], Kind.ANSWER)

    def _template(self, rng: np.random.Generator) -> str:
        templates = self.settings.templates
        if len(templates) == 1 or rng.random() < 0.5:
            return templates[0]
        return templates[int(rng.integers(1, len(templates)))]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # type: ignore[no-any-return]


def near(indices: NDArray[np.int64], index: int, reach: int = _NEAR) -> NDArray[np.int64]:
    """Up to `reach` of the sorted `indices` on either side of `index`, about like things."""
    at = int(np.searchsorted(indices, index))
    beside = indices[max(0, at - reach) : at + reach + 1]
    others: NDArray[np.int64] = beside[beside != index]
    return others
