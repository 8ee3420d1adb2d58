"""Many askers of one reader: their prompts are read and their answers written together.

Each pass of the LLM writes all answers that are under way. A prompt that comes in meanwhile is
read on its own and joins them at the next pass (continuous batching, Yu et al. 2022, "Orca"). One
thread runs the passes, so askers on an event loop wait without blocking it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from ztok_rag.codec.generation import Answer, GreedyDecoder
from ztok_rag.codec.model import READ
from ztok_rag.codec.pieces import Pieces, before
from ztok_rag.forks import in_forked_processes

if TYPE_CHECKING:
    from ztok_rag.codec.reader import Prompt, ZReader

_WIDEST_PADDING = 1.25
"""Prompts are read together where the longest is at most so many times the shortest."""


@dataclass(frozen=True)
class Written:
    """An answer that is whole.

    Attributes:
        text: before the first stop string.
        ended: whether it came to its end; else it is as long as was allowed.
    """

    text: str
    ended: bool


@dataclass(frozen=True)
class BatchStats:
    """What a `Batcher` has done since it was made.

    Attributes:
        passes: of the LLM, to read prompts and to write answers.
        rows: answers that these passes worked on, added up; by `passes`, how full batches were.
        answers: that came to their end.
        cancelled: that their askers no longer wanted.
        waiting: prompts whose turn has not come.
        writing: answers under way, those included whose prompt is being read.
    """

    passes: int = 0
    rows: int = 0
    answers: int = 0
    cancelled: int = 0
    waiting: int = 0
    writing: int = 0


@dataclass(eq=False)
class _Request:
    """One prompt, and whom to tell of its answer; both are called by the thread of the passes."""

    prompt: Prompt
    settings: dict[str, Any]
    stop: Sequence[str]
    piece: Callable[[str], object] | None
    end: Callable[[Written | BaseException], object]
    pieces: Pieces = field(init=False)
    answer: Answer | None = None
    cancelled: bool = False

    def __post_init__(self) -> None:
        self.pieces = Pieces(self.stop)

    @property
    def positions(self) -> int:
        """That prompt and answer take at most."""
        assert self.answer is not None
        return len(self.answer.inputs) + self.answer.limit


@dataclass(eq=False)
class _Group:
    """Answers that are written together, by one adapter."""

    decoder: GreedyDecoder
    requests: list[_Request]


class Batcher:
    """Answers the prompts of many askers with one reader.

    A prompt waits as text and codes. It is embedded when its turn comes, so that the memory that
    many askers take is bounded by `max_rows` and `max_positions`. The order is that of asking.

    Attributes:
        reader: that answers.
        max_rows: most answers under way.
        max_positions: most positions of the KV cache, padding included: answers times the longest
            prompt with its answer. One answer may take more.
    """

    def __init__(
        self,
        reader: ZReader,
        *,
        max_rows: int = 16,
        max_positions: int = 32_768,
        gather_seconds: float = 0.002,
    ) -> None:
        """Set up; a thread is started when the first prompt comes.

        Args:
            reader: that answers.
            max_rows: most answers under way.
            max_positions: most positions of the KV cache.
            gather_seconds: how long the first prompt waits for others to be read with it.
        """
        self.reader = reader
        self.max_rows = max_rows
        self.max_positions = max_positions
        self._gather_seconds = gather_seconds
        self._reset()
        _batchers.add(self)

    def _reset(self) -> None:
        """Begin without prompts and without a thread."""
        self._lock = threading.Lock()
        self._waiting: deque[_Request] = deque()
        self._groups: list[_Group] = []
        self._begun = 0  # embedded, and not at their end
        self._working = False
        # Its thread is kept from pass to pass, as PyTorch's own threads hang on it. Unlike a bare
        # thread it ends with the interpreter and with this object.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="ztok-batcher")
        self._stats = BatchStats()

    @property
    def stats(self) -> BatchStats:
        """Counters as they stand now."""
        with self._lock:
            now = self._stats
            waiting, writing = len(self._waiting), self._begun
        return BatchStats(now.passes, now.rows, now.answers, now.cancelled, waiting, writing)

    async def generate(
        self, prompt: Prompt, *, stop: Sequence[str] = (), **settings: Any
    ) -> Written:
        """The answer to a prompt; it is no longer written when the caller is cancelled.

        Args:
            prompt: text and sequences in reading order.
            stop: the answer ends before the first of these.
            settings: as of `ZReader.begin`, the adapter among them.

        Raises:
            SequenceError: a sequence was made by another checkpoint.
            ZtokError: the prompt is empty or too long, or the adapter is unknown.
        """
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Written] = loop.create_future()

        def settle(value: Written | BaseException) -> None:
            if result.done():
                return
            if isinstance(value, BaseException):
                result.set_exception(value)
            else:
                result.set_result(value)

        request = _Request(prompt, settings, stop, None, _in(loop, settle))
        self._submit(request)
        try:
            return await result
        finally:
            self._cancel(request)

    async def stream(
        self, prompt: Prompt, *, stop: Sequence[str] = (), **settings: Any
    ) -> AsyncGenerator[str | Written, None]:
        """As `generate`, piece by piece; the last item is the whole answer.

        It is no longer written when the caller is cancelled, or closes the generator.
        """
        loop = asyncio.get_running_loop()
        # As long as an answer at most: what a slow caller has not taken is held.
        items: asyncio.Queue[str | Written | BaseException] = asyncio.Queue()
        tell = _in(loop, items.put_nowait)
        request = _Request(prompt, settings, stop, tell, tell)
        self._submit(request)
        try:
            while True:
                item = await items.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if isinstance(item, Written):
                    return
        finally:
            self._cancel(request)

    # -- called by askers

    def _submit(self, request: _Request) -> None:
        with self._lock:
            self._waiting.append(request)
            if not self._working:
                self._working = True
                self._executor.submit(self._work)

    def _cancel(self, request: _Request) -> None:
        """Give the place of a request free, where it still has one."""
        with self._lock:
            request.cancelled = True
            with suppress(ValueError):
                self._waiting.remove(request)
                self._count(cancelled=1)

    # -- in the thread of the passes

    def _work(self) -> None:
        """Answer until nobody waits."""
        if self._gather_seconds:
            time.sleep(self._gather_seconds)
        ready: list[_Request] = []  # embedded, but without room yet
        while True:
            self._drop_cancelled()
            admitted = self._admit(ready)
            with self._lock:
                if not (admitted or ready or self._waiting or self._groups):
                    self._working = False
                    return
            self._read(admitted)
            for group in list(self._groups):
                self._advance(group)

    def _admit(self, ready: list[_Request]) -> list[_Request]:
        """The next requests that there is room for, embedded."""
        writing = [r for group in self._groups for r in group.requests]
        admitted: list[_Request] = []
        while len(writing) + len(admitted) < self.max_rows:
            if not ready:
                with self._lock:
                    if not self._waiting:
                        break
                    request = self._waiting.popleft()
                if request.cancelled or not self._begin(request):
                    continue
                ready.append(request)
            elif ready[0].cancelled:
                ready.pop()
                with self._lock:
                    self._begun -= 1
                    self._count(cancelled=1)
                continue
            held = [*writing, *admitted, ready[0]]
            if len(held) > 1 and len(held) * max(r.positions for r in held) > self.max_positions:
                break
            admitted.append(ready.pop())
        return admitted

    def _begin(self, request: _Request) -> bool:
        """Embed a prompt; where that fails, its asker is told."""
        try:
            request.answer = self.reader.begin(request.prompt, **request.settings)
        except BaseException as error:
            self._finish(request, error)
            return False
        with self._lock:
            self._begun += 1
        return True

    def _read(self, admitted: Sequence[_Request]) -> None:
        """Read prompts, those of like length together; their answers join those under way."""
        for adapter, requests in _alike(admitted):
            answers = [r.answer for r in requests if r.answer is not None]
            group = _Group(self.reader.decoder(answers, adapter), list(requests))
            with self._lock:
                self._groups.append(group)
            self._advance(group)
            self._join(group, adapter)

    def _join(self, group: _Group, adapter: str | None) -> None:
        """Let a group that has read its prompts go on together with one that has, too."""
        for other in self._groups:
            joins = other is not group and other.decoder.adapter == adapter and other.decoder.joins
            if joins and group in self._groups:
                try:
                    other.decoder.join(group.decoder)
                except BaseException as error:
                    self._fail(other, error)
                    self._fail(group, error)
                    return
                with self._lock:
                    other.requests += group.requests
                    self._groups.remove(group)
                return

    def _advance(self, group: _Group) -> None:
        """One pass for a group; what is new is told to its askers."""
        if group not in self._groups:
            return
        try:
            self.reader.advance(group.decoder)
            with self._lock:
                self._count(passes=1, rows=len(group.requests))
            for request in list(group.requests):
                self._tell(group, request)
        except BaseException as error:  # such as a lack of memory: it is that of all of them
            self._fail(group, error)

    def _tell(self, group: _Group, request: _Request) -> None:
        answer = request.answer
        assert answer is not None
        if request.cancelled:
            return
        if request.piece is not None or request.stop:
            piece = request.pieces.take(self.reader.text(answer), whole=answer.done)
            answer.done = answer.done or request.pieces.stopped
            if piece and request.piece is not None:
                request.piece(piece)
        if answer.done:
            text = before(self.reader.text(answer), request.stop)
            self._leave(group, request)
            self._finish(request, Written(text, answer.ended or request.pieces.stopped))

    def _drop_cancelled(self) -> None:
        for group in list(self._groups):
            for request in [r for r in group.requests if r.cancelled]:
                assert request.answer is not None
                request.answer.done = True
                self._leave(group, request)
                with self._lock:
                    self._count(cancelled=1)

    def _leave(self, group: _Group, request: _Request) -> None:
        """Take a request out of its group, and a group without requests away with its cache."""
        with self._lock:
            group.requests.remove(request)
            self._begun -= 1
            if not group.requests and group in self._groups:
                self._groups.remove(group)

    def _fail(self, group: _Group, error: BaseException) -> None:
        for request in list(group.requests):
            self._leave(group, request)
            self._finish(request, error)

    def _finish(self, request: _Request, result: Written | BaseException) -> None:
        if isinstance(result, Written):
            with self._lock:
                self._count(answers=1)
        request.answer = None
        request.end(result)

    def _count(self, **more: int) -> None:
        """Add to the counters; the lock is held."""
        now = self._stats
        self._stats = BatchStats(
            now.passes + more.get("passes", 0),
            now.rows + more.get("rows", 0),
            now.answers + more.get("answers", 0),
            now.cancelled + more.get("cancelled", 0),
        )


def _alike(requests: Sequence[_Request]) -> list[tuple[str | None, list[_Request]]]:
    """Requests by adapter and like length, the shorter first."""
    found: list[tuple[str | None, list[_Request]]] = []
    shortest = 0
    adapters = dict.fromkeys(r.settings.get("adapter", READ) for r in requests)
    for adapter in adapters:
        own = [r for r in requests if r.settings.get("adapter", READ) == adapter]
        sizes = {id(r): len(r.answer.inputs) for r in own if r.answer is not None}
        for number, request in enumerate(sorted(own, key=lambda r: sizes[id(r)])):
            if number and sizes[id(request)] <= _WIDEST_PADDING * shortest:
                found[-1][1].append(request)
            else:
                shortest = sizes[id(request)]
                found.append((adapter, [request]))
    return found


def _in(
    loop: asyncio.AbstractEventLoop, function: Callable[[Any], object]
) -> Callable[[Any], None]:
    """What calls a function in an event loop, from another thread."""

    def call(value: Any) -> None:
        # A loop that is closed has no asker any more.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(function, value)

    return call


_batchers: WeakSet[Batcher] = WeakSet()


def _reset_all() -> None:
    for batcher in list(_batchers):
        batcher._reset()


# The thread of the passes is not forked along; those who wait for it are in the other process.
in_forked_processes(_reset_all)
