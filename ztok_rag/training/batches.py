"""Batches of rows of one length, in an order that the seed alone decides."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ztok_rag.codec.packer import EMPTY
from ztok_rag.errors import DataError
from ztok_rag.training.rows import MOST_PLACES, WEIGHTS, Kind, Row, Rows

LENGTHS = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536)
"""Rows are filled up to the next of these."""

_FRUITLESS = 20_000  # draws without a row after which there is no hope

StreamState = dict[str, Any]


@dataclass
class Batch:
    """Rows of one length, end to end.

    Attributes:
        length: positions of each row; what fills a row up follows it, where nothing looks.
        codes: int64 `[rows * length, slots]`.
        spans: int64 `[rows * length, 2]` of each position, `Positions.spans`.
        at: `[targets]` positions that predict.
        target: `[targets]` token ids to predict.
        weight: `[targets]` of the loss.
        kind: `[targets]` the `Kind` of each.
        queries: `[rows, MOST_PLACES]` positions in each row whose next token the pointer should
            find.
        golds: `[rows, MOST_PLACES, MOST_PLACES]` where it stands among all tokens; -1 where
            empty.
        shares: `[rows, MOST_PLACES]` of the pointer's loss; 0 where there is no query.
        mass: sum of the weights.
        stream: number of the stream it is from.
        state: of that stream after it.
    """

    length: int
    codes: Tensor
    spans: Tensor
    at: Tensor
    target: Tensor
    weight: Tensor
    kind: Tensor
    queries: Tensor
    golds: Tensor
    shares: Tensor
    mass: float = 0.0
    stream: int = 0
    state: StreamState = dataclasses.field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch where a GPU can fetch it from."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, change: Any) -> Batch:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        changed = {k: change(v) if isinstance(v, Tensor) else v for k, v in values.items()}
        return Batch(**changed)


def make_batch(rows: Sequence[Row], length: int, size: int) -> Batch:
    """Rows of at most `length` positions as a batch of `size // length` of them."""
    slots, count = rows[0].positions.codes.shape[1], size // length
    codes = np.full((count, length, slots), EMPTY, np.int64)
    codes[:, :, 0] = 0
    spans = np.full((count, length, 2), -1, np.int64)
    target = np.full((count, length), -1, np.int64)
    weight = np.zeros((count, length), np.float32)
    kind = np.zeros((count, length), np.int64)
    queries = np.zeros((count, MOST_PLACES), np.int64)
    golds = np.full((count, MOST_PLACES, MOST_PLACES), -1, np.int64)
    shares = np.zeros((count, MOST_PLACES), np.float32)
    for number, row in enumerate(rows):
        first = len(row) - len(row.target)
        codes[number, : len(row)] = row.positions.codes
        spans[number, : len(row)] = row.positions.spans
        target[number, first : len(row)] = row.target
        weight[number, first : len(row)] = WEIGHTS[row.kind]
        kind[number, first : len(row)] = row.kind
        if not _is_shown(row):
            continue
        scale = 1.0 if row.kind in (Kind.ANSWER, Kind.CLOZE) else 0.3
        for step in range(row.steps):
            queries[number, step] = first + step
            golds[number, step, : len(row.places)] = row.places + step
            shares[number, step] = scale * (0.5 if step else 1.0)
    at = np.flatnonzero(target.ravel() >= 0)
    return Batch(
        length=length,
        codes=torch.from_numpy(codes.reshape(-1, slots)),
        spans=torch.from_numpy(spans.reshape(-1, 2)),
        at=torch.from_numpy(at),
        target=torch.from_numpy(target.ravel()[at]),
        weight=torch.from_numpy(weight.ravel()[at]),
        kind=torch.from_numpy(kind.ravel()[at]),
        queries=torch.from_numpy(queries),
        golds=torch.from_numpy(golds),
        shares=torch.from_numpy(shares),
        mass=float(weight.sum()),
    )


def _is_shown(row: Row) -> bool:
    """Whether a place of the answer is in the row: pieces of a passage may be left out."""
    starts, ends = row.positions.spans.T[:, :, None]
    inside = (starts <= row.places) & (row.places < ends) & (starts >= 0)
    return bool(inside.any())


class RowStream:
    """Batches from one stream of draws: draw `i` depends on the seed and `i` alone.

    Rows wait, by their length, until a batch is full. `state` names the draws of those that wait,
    so that another stream can go on from there.
    """

    def __init__(
        self,
        rows: Rows,
        shares: Mapping[str, float],
        lengths: Sequence[int],
        size: int,
        seed: Sequence[int],
        state: StreamState | None = None,
    ) -> None:
        self.rows = rows
        self.shares = shares
        self.lengths = lengths
        self.size = size
        self.seed = list(seed)
        self.next = int(state["next"]) if state else 0
        self.waiting: dict[int, list[tuple[int, int, Row]]] = {n: [] for n in lengths}
        for draw, part in state["waiting"] if state else ():
            row = self._draw(draw)[part]
            self.waiting[self._home(row)].append((draw, part, row))  # type: ignore[index]

    @property
    def state(self) -> StreamState:
        """What to go on from."""
        waiting = sorted((d, p) for rows in self.waiting.values() for d, p, _ in rows)
        return {"next": self.next, "waiting": [list(pair) for pair in waiting]}

    def __next__(self) -> Batch:
        misses = 0
        while misses < _FRUITLESS:
            # A draw may fill several batches; those left over are made first.
            for length, rows in self.waiting.items():
                if len(rows) >= self.size // length:
                    return self._take(length)
            draw = self.next
            self.next += 1
            misses += 1
            for part, row in enumerate(self._draw(draw)):
                home = self._home(row)
                if home is not None:
                    self.waiting[home].append((draw, part, row))
                    misses = 0
        raise DataError(
            f"no {' or '.join(self.shares)} row can be made of the data; give longer texts, "
            "another phase or a larger --size."
        )

    def _take(self, length: int) -> Batch:
        count = self.size // length
        rows = self.waiting[length]
        taken, self.waiting[length] = rows[:count], rows[count:]
        return make_batch([row for _, _, row in taken], length, self.size)

    def _draw(self, number: int) -> list[Row]:
        return self.rows.draw(np.random.default_rng([*self.seed, number]), self.shares)

    def _home(self, row: Row) -> int | None:
        return next((length for length in self.lengths if length >= len(row)), None)


@dataclass(frozen=True)
class StreamPlan:
    """Which streams the batches of steps come from.

    Batch `i`, counted over all steps and devices, is from stream `i % streams`, so that neither
    the number of devices nor an interruption changes what is trained on.

    Attributes:
        per_step: batches of a step, over all devices.
        workers: processes that make the batches of each of these; 0 makes them in this one.
        process: number of this process among all devices' processes.
        processes: their number; it divides `per_step`.
    """

    per_step: int = 1
    workers: int = 0
    process: int = 0
    processes: int = 1

    @property
    def streams(self) -> int:
        """Number of streams."""
        return self.per_step * max(1, self.workers)

    def own(self, step: int) -> list[int]:
        """This process's streams, in the order in which it takes batches from `step` on."""
        first = step * self.per_step
        return [
            i % self.streams
            for i in range(first, first + self.streams)
            if i % self.per_step % self.processes == self.process
        ]


class _Batches(IterableDataset[Batch]):
    """One worker's share of a process's streams, in turn."""

    def __init__(self, streams: Mapping[int, RowStream], order: Sequence[int]) -> None:
        self.streams = streams
        self.order = list(order)

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        order = self.order if worker is None else self.order[worker.id :: worker.num_workers]
        while True:
            for number in order:
                stream = self.streams[number]
                batch = next(stream)
                batch.stream, batch.state = number, stream.state
                yield batch


def load_batches(
    rows: Rows,
    shares: Mapping[str, float],
    plan: StreamPlan,
    *,
    size: int,
    longest: int,
    seed: Sequence[int],
    step: int = 0,
    states: Mapping[int, StreamState] | None = None,
    pin: bool = False,
) -> Iterator[Batch]:
    """Batches of this process from a step on.

    Args:
        rows: what draws rows.
        shares: of each kind of row.
        plan: which streams they are from.
        size: positions of each.
        longest: most positions of a row.
        seed: of the draws.
        step: the first step.
        states: of streams that were used before.
        pin: put them where a GPU can fetch them from.
    """
    lengths = [n for n in LENGTHS if n <= min(size, longest)]
    if not lengths:
        raise DataError(f"a batch of {size} positions holds no row; give a --size of {LENGTHS[0]}.")
    order = plan.own(step)
    streams = {
        number: RowStream(rows, shares, lengths, size, [*seed, number], (states or {}).get(number))
        for number in order
    }
    loader = DataLoader(
        _Batches(streams, order),
        batch_size=None,
        num_workers=len(order) if plan.workers else 0,
        pin_memory=pin,
        worker_init_fn=_leave_interrupts if plan.workers else None,
    )
    return iter(loader)


def _leave_interrupts(_: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the training loop acts on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
