"""Many askers of one reader: answers are those given alone, and none waits on another's."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable

import pytest
import torch

from tests.training.tiny_base import passages, tiny_model
from ztok_rag import ZCompressor, ZReader, ZtokError
from ztok_rag.codec.batcher import Batcher, Written
from ztok_rag.codec.generation import GreedyDecoder
from ztok_rag.codec.speculation import Speculate
from ztok_rag.codec.write_head import WriteHead

Ask = list[object]


@pytest.fixture(scope="module")
def tiny() -> ZReader:
    return ZReader(tiny_model())


def prompts_of(reader: ZReader, count: int) -> list[Ask]:
    """Prompts of several lengths, of Z-tokens and of text."""
    asked: list[Ask] = []
    texts = passages(count)
    zs = ZCompressor(reader.model).compress([text for text, _, _ in texts], 3.0)
    for number, (z, (text, question, _)) in enumerate(zip(zs, texts, strict=True)):
        context = (z, text[: 40 + 3 * number], z.part(0, 5 + number % 20))[number % 3]
        asked.append([context, f"\n\nQuestion: {question}\nAnswer:"])
    return asked


def alone(reader: ZReader, prompts: list[Ask], limits: list[int]) -> list[str]:
    return [
        reader.generate([prompt], max_new_tokens=limit)[0]
        for prompt, limit in zip(prompts, limits, strict=True)
    ]


@pytest.mark.parametrize("layout", ["llama", "gemma3"])
def test_answers_are_those_given_alone(layout: str) -> None:
    reader = ZReader(tiny_model(layout))
    prompts = prompts_of(reader, 24)
    limits = [3 + number % 14 for number in range(24)]
    wanted = alone(reader, prompts, limits)
    batcher = Batcher(reader, max_rows=8)

    async def ask(number: int) -> Written:
        await asyncio.sleep(0.01 * (number % 5))  # some come while others are answered
        return await batcher.generate(prompts[number], max_new_tokens=limits[number])

    async def ask_all() -> list[Written]:
        return await asyncio.gather(*map(ask, range(24)))

    got = asyncio.run(ask_all())
    assert [written.text for written in got] == wanted
    stats = batcher.stats
    assert (stats.answers, stats.waiting, stats.writing, stats.cancelled) == (24, 0, 0, 0)
    # A batch of one would take a pass for each row.
    assert stats.passes < stats.rows / (2 if layout == "llama" else 1)


def test_askers_may_have_drafts_of_their_own_kind() -> None:
    reader = ZReader(tiny_model())
    torch.manual_seed(0)
    head = WriteHead(reader.model.base.hidden_size, torch.arange(2, 60), width=16)
    head.agreement.fill_(1.0)  # it believes itself, so that it guesses
    reader.model.writer = head
    prompts = prompts_of(reader, 12)
    wanted = alone(reader, prompts, [12] * 12)
    kinds: list[Speculate] = ["head", False, "lookup", "both"]

    async def ask_all() -> list[Written]:
        return await asyncio.gather(
            *(
                reader.batcher.generate(prompt, max_new_tokens=12, speculate=kinds[number % 4])
                for number, prompt in enumerate(prompts)
            )
        )

    assert [written.text for written in asyncio.run(ask_all())] == wanted
    assert reader.guessed.total() > 0


def test_a_thousand_askers(tiny: ZReader) -> None:
    prompts = prompts_of(tiny, 40)
    wanted = alone(tiny, prompts, [6] * 40)
    batcher = Batcher(tiny, max_rows=32)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, batcher.stats.writing)
            await asyncio.sleep(0.001)

    async def ask_all() -> list[Written]:
        watching = asyncio.create_task(watch())
        asked = [batcher.generate(prompts[n % 40], max_new_tokens=6) for n in range(1000)]
        got = await asyncio.gather(*asked)
        watching.cancel()
        return got

    got = asyncio.run(ask_all())
    assert [written.text for written in got] == [wanted[n % 40] for n in range(1000)]
    assert 16 < most <= 32
    assert batcher.stats.rows > 8 * batcher.stats.passes  # batches were filled


def test_positions_are_bounded(tiny: ZReader) -> None:
    prompts = prompts_of(tiny, 12)
    longest = max(len(tiny.begin(p, max_new_tokens=4).inputs) + 4 for p in prompts)
    batcher = Batcher(tiny, max_positions=2 * longest)
    widths: list[int] = []

    class Watching(ZReader):
        def advance(self, decoder: GreedyDecoder) -> None:
            super().advance(decoder)
            widths.append(len(decoder.rows) * max(len(r.inputs) for r in decoder.rows))

    batcher.reader = Watching(tiny.model)

    async def ask_all() -> list[Written]:
        return await asyncio.gather(*(batcher.generate(p, max_new_tokens=4) for p in prompts))

    assert [w.text for w in asyncio.run(ask_all())] == alone(tiny, prompts, [4] * 12)
    assert max(widths) <= 2 * longest


def test_a_stream_is_the_whole_answer_in_pieces(tiny: ZReader) -> None:
    prompts = prompts_of(tiny, 6)
    batcher = Batcher(tiny)
    whole = alone(tiny, prompts, [12] * 6)
    stop = whole[0][3:6]
    wanted = [tiny.generate([p], max_new_tokens=12, stop=[stop])[0] for p in prompts]

    async def stream(prompt: Ask) -> list[str | Written]:
        return [item async for item in batcher.stream(prompt, max_new_tokens=12, stop=[stop])]

    async def ask_all() -> list[list[str | Written]]:
        return await asyncio.gather(*map(stream, prompts))

    for (*pieces, last), text in zip(asyncio.run(ask_all()), wanted, strict=True):
        assert isinstance(last, Written)
        assert "".join(map(str, pieces)) == last.text == text
    assert wanted[0] != whole[0]


def test_whether_an_answer_came_to_its_end(tiny: ZReader) -> None:
    (prompt,) = prompts_of(tiny, 1)

    async def ask(limit: int, *stop: str) -> Written:
        return await tiny.batcher.generate(prompt, max_new_tokens=limit, stop=stop)

    cut = asyncio.run(ask(3))
    assert not cut.ended
    assert asyncio.run(ask(8, cut.text[2:])).ended


def test_an_error_is_its_askers_alone(tiny: ZReader) -> None:
    prompts = prompts_of(tiny, 3)
    batcher = Batcher(tiny)

    async def ask_all() -> list[Written | BaseException]:
        asked = [batcher.generate(p, max_new_tokens=4) for p in prompts]
        asked.insert(1, batcher.generate(["word " * 600], max_new_tokens=4))
        asked.insert(2, batcher.generate([], max_new_tokens=4))
        return await asyncio.gather(*asked, return_exceptions=True)

    got = asyncio.run(ask_all())
    assert isinstance(got[1], ZtokError) and "positions" in str(got[1])
    assert isinstance(got[2], ZtokError) and "empty" in str(got[2])
    texts = [w.text for w in got if isinstance(w, Written)]
    assert texts == alone(tiny, prompts, [4] * 3)


class Held(ZReader):
    """A reader that waits before each pass until it is let go."""

    def __init__(self, reader: ZReader, fails: bool = False) -> None:
        super().__init__(reader.model)
        self.reading = threading.Event()
        self.go = threading.Semaphore(0)
        self.fails = fails

    def advance(self, decoder: GreedyDecoder) -> None:
        self.reading.set()
        self.go.acquire()
        if self.fails:
            raise torch.OutOfMemoryError("no memory")
        super().advance(decoder)


def test_a_cancelled_asker_gives_its_place_free(tiny: ZReader) -> None:
    reader = Held(tiny)
    batcher = Batcher(reader, max_rows=1)
    first, second, third = prompts_of(tiny, 3)

    async def ask() -> Written:
        writing = asyncio.create_task(batcher.generate(first, max_new_tokens=300))
        await asyncio.to_thread(reader.reading.wait)
        waiting = asyncio.create_task(batcher.generate(second, max_new_tokens=4))
        streamed = batcher.stream(third, max_new_tokens=4)
        last = asyncio.create_task(anext(streamed))
        await asyncio.sleep(0.01)
        assert (batcher.stats.writing, batcher.stats.waiting) == (1, 2)
        for task in (writing, waiting):
            task.cancel()
        await asyncio.gather(writing, waiting, return_exceptions=True)
        assert batcher.stats.waiting == 1
        for _ in range(50):
            reader.go.release()
        assert await last  # which had to wait for the first one's place
        await streamed.aclose()
        return await batcher.generate(second, max_new_tokens=4)

    assert asyncio.run(ask()).text == alone(tiny, [second], [4])[0]
    assert batcher.stats.cancelled >= 2
    # Neither of those cancelled was written on.
    assert batcher.stats.passes < 20


def test_a_pass_that_fails_ends_its_answers_and_no_others(tiny: ZReader) -> None:
    reader = Held(tiny, fails=True)
    batcher = Batcher(reader, max_rows=2)
    prompts = prompts_of(tiny, 4)
    for _ in range(100):
        reader.go.release()

    async def ask_all() -> list[Written | BaseException]:
        asked = [asyncio.create_task(batcher.generate(p, max_new_tokens=3)) for p in prompts]
        await asyncio.wait(asked)
        reader.fails = False
        return [*(task.exception() for task in asked), await batcher.generate(prompts[0])]

    *failed, answered = asyncio.run(ask_all())
    assert all(isinstance(error, torch.OutOfMemoryError) for error in failed)
    assert isinstance(answered, Written)


def test_the_event_loop_goes_on(tiny: ZReader) -> None:
    prompts = prompts_of(tiny, 40)
    lags: list[float] = []

    async def tick() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            lags.append(time.perf_counter() - before - 0.005)

    async def ask_all() -> None:
        ticking = asyncio.create_task(tick())
        batcher = Batcher(tiny)
        await asyncio.gather(*(batcher.generate(p, max_new_tokens=24) for p in prompts))
        ticking.cancel()

    asyncio.run(ask_all())
    assert len(lags) > 10
    assert sorted(lags)[len(lags) // 2] < 0.05


def test_loops_in_several_threads_share_batches(tiny: ZReader) -> None:
    prompts = prompts_of(tiny, 8)
    got: dict[int, str] = {}

    def ask(number: int) -> None:
        written = asyncio.run(tiny.batcher.generate(prompts[number], max_new_tokens=8))
        got[number] = written.text

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for action in (threading.Thread.start, threading.Thread.join):
        for thread in threads:
            action(thread)
    assert [got[n] for n in range(8)] == alone(tiny, prompts, [8] * 8)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_answers(tiny: ZReader) -> None:
    (prompt,) = prompts_of(tiny, 1)

    def ask() -> str:
        return asyncio.run(tiny.batcher.generate(prompt, max_new_tokens=4)).text

    wanted = ask()
    assert in_child(lambda: ask() == wanted)


def in_child(check: Callable[[], bool]) -> bool:
    """Whether a check holds in a forked process, which ends within a minute."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if check() else 2
        finally:
            os._exit(status)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False
