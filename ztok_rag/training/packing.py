"""Examples laid out as reader inputs, several to a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ztok_rag.training.examples import Composed, Example, Kind, Window


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
