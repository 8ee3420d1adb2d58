"""Training records, and the packed batches made from them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ztok_rag.codec.model import Focus
from ztok_rag.codec.prompts import REPEAT_PROMPT
from ztok_rag.errors import DataError
from ztok_rag.training.cloze import cloze

_WORD = re.compile(r"\w+")
_NEAR = 8


class Kind(IntEnum):
    """What a predicted token belongs to."""

    ANSWER = 0
    QUESTION = 1
    RECONSTRUCTION = 2
    CONTINUATION = 3


@dataclass(frozen=True)
class Passage:
    """A text and the questions asked of it (none for unlabelled text)."""

    text: str
    questions: tuple[tuple[str, tuple[str, ...]], ...] = ()


def read_passages(path: str | Path) -> list[Passage]:
    """Read training text.

    Args:
        path: JSON Lines of `{context, question, answers}` (rows of one context are gathered) or
            of `{text}`; or a plain text file, each paragraph a passage; or a folder of these.

    Raises:
        DataError: the path is missing, or a record is malformed; names file and line.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in {".jsonl", ".txt", ".md"})
        return [passage for file in files for passage in read_passages(file)]
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} as UTF-8 text ({error}).") from error
    if path.suffix != ".jsonl":
        return [Passage(part.strip()) for part in text.split("\n\n") if part.strip()]
    gathered: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            context, question = _parse_record(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: expected an object with `text`, or with `context`, "
                f"`question` and a non-empty list `answers` ({error})."
            ) from error
        questions = gathered.setdefault(context, [])
        if question is not None:
            questions.append(question)
    return [Passage(context, tuple(questions)) for context, questions in gathered.items()]


def _parse_record(record: Any) -> tuple[str, tuple[str, tuple[str, ...]] | None]:
    if "question" not in record:
        text = record["text"] if "text" in record else record["context"]
        if not isinstance(text, str) or not text.strip():
            raise ValueError("the text is empty")
        return text, None
    context, question, answers = record["context"], record["question"], record["answers"]
    if not isinstance(context, str) or not context.strip() or not isinstance(question, str):
        raise ValueError("`context` and `question` must be non-empty strings")
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers):
        raise ValueError("`answers` must be a non-empty list of strings")
    return context, (question, tuple(answers))


@dataclass(frozen=True)
class Window:
    """Source tokens that the compressor turns into Z-tokens.

    Attributes:
        ids: of the tokens.
        uses: of each token, whether it is part of an answer, and whether a question names it;
            `None` where there are no questions.
        focus: what to spend more Z-tokens on, as a question would ask for; no parts where no
            question asks.
    """

    ids: tuple[int, ...]
    uses: tuple[tuple[int, int], ...] | None = None
    focus: Focus | None = None


@dataclass(frozen=True, eq=False)
class Composed:
    """Z-tokens ready to be read.

    Attributes:
        codes: int64 `[n_z, depth]` as in `ZSequence.codes`.
        source_tokens: tokens of the text they were made of.
    """

    codes: NDArray[np.int64]
    source_tokens: int


@dataclass(frozen=True)
class Branch:
    """Token ids of a prompt and of what should follow it."""

    prompt: list[int]
    target: list[int]
    kind: Kind


@dataclass
class Example:
    """A shared prefix of text and Z-tokens, then branches that see the prefix and themselves."""

    prefix: list[list[int] | Window | Composed]
    branches: list[Branch]


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
        self.uses = [_by_token(uses[i], encoding["offset_mapping"][i][:limit]) for i in kept]
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


def find_uses(
    passages: Sequence[Passage], *, common: float = 0.05
) -> list[NDArray[np.int8] | None]:
    """What the questions of each passage use of its text.

    An answer is marked where it stands; one that is not in the text word for word, by its words.
    A question marks its words. Words in more than a share `common` of the passages mark nothing.

    Returns:
        `[characters, 2]` of 0 or 1 for each passage: part of an answer, named by a question;
        `None` for a passage without questions.
    """
    words = [Counter(_WORD.findall(p.text.lower())) for p in passages]
    frequency = Counter(word for counts in words for word in counts)
    limit = max(2.0, common * len(passages))

    def mark(text: str, wanted: str, column: NDArray[np.int8]) -> None:
        names = {w for w in _WORD.findall(wanted.lower()) if frequency[w] <= limit}
        for match in _WORD.finditer(text):
            if match.group().lower() in names:
                column[match.start() : match.end()] = 1

    found: list[NDArray[np.int8] | None] = []
    for passage in passages:
        if not passage.questions:
            found.append(None)
            continue
        uses = np.zeros((len(passage.text), 2), dtype=np.int8)
        for question, answers in passage.questions:
            mark(passage.text, question, uses[:, 1])
            for answer in dict.fromkeys(answers):
                at = passage.text.find(answer)
                if at >= 0:
                    uses[at : at + len(answer), 0] = 1
                else:
                    mark(passage.text, answer, uses[:, 0])
        found.append(uses)
    return found


def _by_token(
    uses: NDArray[np.int8] | None, offsets: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], ...] | None:
    """Uses of tokens, by their character offsets."""
    if uses is None:
        return None
    rows = (uses[a:b].max(axis=0, initial=0).tolist() for a, b in offsets)
    return tuple((answer, question) for answer, question in rows)


@dataclass
class Packed:
    """Reader inputs of a batch, and what to predict from them.

    Attributes:
        embeddings: `[rows, length, hidden]`.
        mask: bool `[rows, 1, length, length]`, true where attention may look.
        positions: int64 `[rows, length]`.
        index: int64 `[n]`: flat position (`row * length + column`) of each prediction, in the
            order of examples and branches, whatever the rows they were laid in.
        labels: int64 `[n]` token to predict there.
        kinds: int64 `[n]`, of `Kind`.
        examples: int64 `[n]`, the example that each belongs to.
    """

    embeddings: Tensor
    mask: Tensor
    positions: Tensor
    index: Tensor
    labels: Tensor
    kinds: Tensor
    examples: Tensor


@dataclass
class _Row:
    """One example, position by position; `parts` index the texts or are Z-token embeddings."""

    parts: list[slice | Tensor]
    branch: list[int]
    positions: list[int]
    predicted: list[tuple[int, int, Kind]]  # position, label, kind


def pack(
    examples: Sequence[Example],
    embed: Callable[[Tensor], Tensor],
    windows: Iterator[Tensor],
    *,
    questions: bool = False,
    row_lengths: Sequence[int] = (256, 320, 384, 448, 512, 640),
) -> Packed:
    """Lay examples out as reader inputs, several to a row where they fit.

    Args:
        examples: of one batch.
        embed: from token ids `[n]` to embeddings `[n, hidden]`.
        windows: embeddings `[n_z, hidden]` of each `Window` or `Composed`, in order.
        questions: whether the words of questions are predicted too.
        row_lengths: positions per row to choose from, for the least padding.
    """
    texts: list[int] = []
    rows = [_lay_out(example, texts, windows, questions) for example in examples]
    sizes = [len(row.branch) for row in rows]
    bins = min((_first_fit(sizes, n) for n in row_lengths), key=lambda b: _cost(b, sizes))
    embedded = embed(torch.tensor(texts))
    device = embedded.device
    length = max(sum(sizes[i] for i in members) for members in bins)

    def grid(values: Callable[[int], list[int]], fill: int) -> Tensor:
        lines = [[v for i in members for v in values(i)] for members in bins]
        padded = [line + [fill] * (length - len(line)) for line in lines]
        return torch.tensor(padded, device=device)

    branch = grid(lambda i: rows[i].branch, -1)
    owner = grid(lambda i: [i] * len(rows[i].branch), -1)
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    own = branch[:, None, :] == branch[:, :, None]
    same = owner[:, None, :] == owner[:, :, None]
    mask = causal & same & (own | (branch[:, None, :] == 0))
    vectors = [
        torch.cat(
            [p if isinstance(p, Tensor) else embedded[p] for i in members for p in rows[i].parts]
        )
        for members in bins
    ]
    starts = [0] * len(rows)
    for number, members in enumerate(bins):
        start = number * length
        for i in members:
            starts[i], start = start, start + sizes[i]
    predicted = [
        (start + position, label, kind, number)
        for number, (start, row) in enumerate(zip(starts, rows, strict=True))
        for position, label, kind in row.predicted
    ]
    index, labels, kinds, owners = torch.tensor(predicted, device=device).reshape(-1, 4).unbind(1)
    return Packed(
        embeddings=nn.utils.rnn.pad_sequence(vectors, batch_first=True),
        mask=mask.unsqueeze(1),
        positions=grid(lambda i: rows[i].positions, 0),
        index=index,
        labels=labels,
        kinds=kinds,
        examples=owners,
    )


def _lay_out(
    example: Example, texts: list[int], windows: Iterator[Tensor], questions: bool
) -> _Row:
    """One example's row; the ids of its text parts are appended to `texts`."""
    row = _Row([], [], [], [])

    def add_text(ids: list[int]) -> None:
        row.parts.append(slice(len(texts), len(texts) + len(ids)))
        texts.extend(ids)

    for part in example.prefix:
        if isinstance(part, Window | Composed):
            vectors = next(windows)
            row.parts.append(vectors)
            row.branch += [0] * len(vectors)
        else:
            add_text(part)
            row.branch += [0] * len(part)
    start = len(row.branch)
    row.positions += range(start)
    for number, branch in enumerate(example.branches, start=1):
        ids = branch.prompt + branch.target[:-1]
        first = len(row.branch)
        add_text(ids)
        row.branch += [number] * len(ids)
        row.positions += range(start, start + len(ids))
        if questions and branch.kind is Kind.ANSWER:
            row.predicted += [
                (first + i - 1, branch.prompt[i], Kind.QUESTION)
                for i in range(1, len(branch.prompt))
            ]
        after = first + len(branch.prompt) - 1
        row.predicted += [(after + i, token, branch.kind) for i, token in enumerate(branch.target)]
    return row


def _cost(bins: list[list[int]], sizes: list[int]) -> float:
    """Compute of a packing: its area, and attention that grows with the length of a row."""
    length = max(sum(sizes[i] for i in members) for members in bins)
    return len(bins) * length * (1 + length / 3000)


def _first_fit(sizes: list[int], capacity: int) -> list[list[int]]:
    """Indices grouped so that each group's sizes sum to at most the capacity, where they can."""
    capacity = max(capacity, *sizes)
    bins: list[tuple[int, list[int]]] = []
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        for position, (filled, members) in enumerate(bins):
            if filled + sizes[index] <= capacity:
                members.append(index)
                bins[position] = (filled + sizes[index], members)
                break
        else:
            bins.append((sizes[index], [index]))
    return [members for _, members in bins]
