"""Answering questions by every arm, and reconstructing texts at every rate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ztok_rag.codec.sequence import ZSequence
from ztok_rag.evaluation.log import PredictionLog
from ztok_rag.evaluation.questions import Arm, Question, sample, utf8_bytes
from ztok_rag.selection.focus import QuestionFocus, resolve_in_memory
from ztok_rag.selection.sentences import SentenceScorer

if TYPE_CHECKING:
    from tqdm import tqdm

    from ztok_rag.codec.compressor import ZCompressor

JOIN = "\n\n"
"""Stands between two retrieved chunks, as text or as Z-tokens."""

_SHORTEN_AT_ONCE = 4
"""Batches of prompts whose contexts are shortened before the first of them is answered."""

Segments = list[str | ZSequence]


@dataclass(frozen=True)
class _Prompt:
    """A prompt with the cost of its context; `times` are in milliseconds."""

    segments: Segments
    context_tokens: int
    source_tokens: int
    stored_bytes: int
    truncated: bool
    times: Mapping[str, float] = field(default_factory=dict)


def evaluate(
    questions: Sequence[Question],
    arms: Sequence[Arm],
    *,
    compressor: ZCompressor,
    retrieve: Callable[[Sequence[Question]], Sequence[Sequence[str]]],
    log: PredictionLog,
    batch_size: int = 8,
    measured: int = 8,
    seed: int = 0,
    bar: tqdm[Any] | None = None,
) -> None:
    """Answer every question by every arm, into `log`; what `log` already holds is not run again.

    Args:
        questions: of one task.
        retrieve: the chunks of each question, in the order in which they are read.
        batch_size: most prompts in one batch.
        measured: number of questions per arm whose prefill is timed.
        bar: progress bar, moved by one per answer, answers already there included.
    """
    reader = compressor.reader
    timed = {question.id for question in sample(questions, measured, seed)}
    todo = {arm: [q for q in questions if log.get(q, arm) is None] for arm in arms}
    with_context = {q.id: q for arm in arms if arm.rate is not None for q in todo[arm]}

    def show(state: str) -> None:
        if bar is not None:
            bar.set_postfix_str(f"{questions[0].task}: {state}")

    show("retrieving")
    found = retrieve(list(with_context.values())) if with_context else []
    chunks = dict(zip(with_context, found, strict=True))

    compressed = _Compressed(compressor)
    for arm in arms:
        if bar is not None:
            bar.update(len(questions) - len(todo[arm]))
        if arm.reads_z_tokens or arm.shorten is not None:
            texts = list(dict.fromkeys(text for q in todo[arm] for text in chunks[q.id]))
            for start in range(0, len(texts), 64):
                show(f"preparing {arm.label}, {start} of {len(texts)} chunks done")
                compressed.prepare(texts[start : start + 64], arm)
        show(arm.label)
        measured_before = False
        for group in _groups(todo[arm], arm, batch_size):
            prompts: dict[str, _Prompt] = {}
            for question in group:
                found_chunks = chunks.get(question.id, ())
                if arm.shorten is not None and found_chunks:
                    show(f"{arm.label}, shortening for question {question.id}")
                    if question is todo[arm][0]:
                        # Loads what it needs, so that no question's time includes that.
                        arm.shorten(question.text, found_chunks, 1)
                prompts[question.id] = _build(question, arm, found_chunks, compressed, compressor)
            show(arm.label)
            for batch in _batches(group, prompts, reader, batch_size):
                outputs = reader.generate(
                    [prompts[q.id].segments for q in batch],
                    max_new_tokens=batch[0].max_new_tokens,
                    adapter=arm.adapter,
                    batch_size=batch_size,
                )
                records = []
                for question, output in zip(batch, outputs, strict=True):
                    record = _record(question, arm, prompts[question.id], output)
                    if question.gold is not None and arm.rate is not None:
                        record["gold_retrieved"] = question.gold in chunks[question.id]
                    if question.id in timed:
                        segments = prompts[question.id].segments
                        if not measured_before:
                            reader.measure(segments, adapter=arm.adapter)
                            measured_before = True
                        cost = reader.measure(segments, adapter=arm.adapter)
                        record |= {
                            "prefill_ms": round(cost.prefill_ms, 3),
                            "ttft_ms": round(cost.ttft_ms, 3),
                            "kv_bytes": cost.kv_bytes,
                        }
                    records.append(record)
                log.append(records)
                if bar is not None:
                    bar.update(len(batch))


def reconstruct(
    texts: Sequence[Question],
    rates: Sequence[float],
    *,
    compressor: ZCompressor,
    log: PredictionLog,
    batch_size: int = 8,
    bar: tqdm[Any] | None = None,
) -> None:
    """Compress and decompress every text, into `log`; what `log` already holds is not run again.

    The records are of the arm `ztok`.

    Args:
        texts: each has the text to reconstruct as its only answer; where its `text` is another,
            that is the whole of which this is a cut.
        rates: source tokens per Z-token.
        batch_size: most texts in one batch.
        bar: progress bar, moved by one per text and rate, those already there left out.
    """
    for rate in rates:
        arm = Arm("ztok", rate, "read")
        todo = [text for text in texts if log.get(text, arm) is None]
        todo.sort(key=lambda text: -len(text.answers[0]))
        for start in range(0, len(todo), batch_size):
            batch = todo[start : start + batch_size]
            if bar is not None:
                bar.set_postfix_str(f"{batch[0].task}: {arm.label}")
            zs = compressor.compress([text.answers[0] for text in batch], rate=rate)
            outputs = compressor.decompress(zs, batch_size=batch_size)
            log.append(
                _record(text, arm, _whole(text, z), output)
                for text, z, output in zip(batch, zs, outputs, strict=True)
            )
            if bar is not None:
                bar.update(len(batch))


def _whole(text: Question, z: ZSequence) -> _Prompt:
    """A text's Z-tokens, as a prompt of nothing else."""
    return _Prompt([z], len(z), z.source_tokens, len(z.to_bytes()), text.answers[0] != text.text)


def _record(question: Question, arm: Arm, prompt: _Prompt, output: str) -> dict[str, Any]:
    return {
        "task": question.task,
        "arm": arm.name,
        "rate": arm.rate,
        "id": question.id,
        "prediction": output,
        "answers": list(question.answers),
        "scores": {name: round(value, 6) for name, value in question.score(output).items()},
        "context_tokens": prompt.context_tokens,
        "source_tokens": prompt.source_tokens,
        "stored_bytes": prompt.stored_bytes,
        "truncated": prompt.truncated,
        **{name: round(value, 3) for name, value in prompt.times.items()},
    }


def _groups(
    questions: Sequence[Question], arm: Arm, batch_size: int
) -> Iterator[Sequence[Question]]:
    """The questions in groups whose prompts are made together: small where that takes long."""
    size = len(questions) if arm.shorten is None else _SHORTEN_AT_ONCE * batch_size
    for start in range(0, len(questions), max(1, size)):
        yield questions[start : start + size]


def _batches(
    questions: Sequence[Question], prompts: Mapping[str, _Prompt], reader: Any, batch_size: int
) -> list[list[Question]]:
    """Questions by falling prompt length, so that little is padded and the worst comes first."""
    most_positions = 2 * int(reader.max_positions)
    lengths = {q.id: reader.count_tokens(prompts[q.id].segments) for q in questions}
    batches: list[list[Question]] = []
    for question in sorted(questions, key=lambda q: -lengths[q.id]):
        batch = batches[-1] if batches else []
        if (
            not batch
            or len(batch) == batch_size
            or (len(batch) + 1) * lengths[batch[0].id] > most_positions
        ):
            batches.append([question])
        else:
            batch.append(question)
    return batches


def _build(
    question: Question,
    arm: Arm,
    chunks: Sequence[str],
    compressed: _Compressed,
    compressor: ZCompressor,
) -> _Prompt:
    """The prompt of an arm, with the middle of the context left out where it is too long."""
    reader = compressor.reader
    # A few positions are kept back: texts cut apart may take more tokens than together.
    room = reader.max_positions - question.max_new_tokens - 8
    before, after = question.before, question.after
    if question.chat and arm.adapter is None:
        head, tail = chat_frame(compressor.tokenizer)
        before, after = head + before, after + tail
    whole = before, after
    if reader.count_tokens(before + after) > room:
        before, _ = cut_middle(before, room // 4, compressor.tokenizer)
        after, _ = cut_middle(after, room - room // 4 - 8, compressor.tokenizer)
    cut = (before, after) != whole
    room = max(0, room - reader.count_tokens(before + after))

    if arm.rate is None:
        return _Prompt([before + after], 0, 0, 0, cut)
    if arm.shorten is not None:
        return _build_shortened(question, arm, chunks, (before, after), room, cut, compressor)
    if not arm.reads_z_tokens:
        text, text_cut = cut_middle(JOIN.join(chunks), room, compressor.tokenizer)
        tokens = reader.count_tokens(text) if text else 0
        return _Prompt([before + text + after], tokens, tokens, utf8_bytes(text), cut or text_cut)

    started = time.perf_counter()
    kept = list(zip(chunks, compressed.read(question.text, chunks, arm), strict=True))
    took = 1e3 * (time.perf_counter() - started)
    joint = reader.count_tokens(JOIN)
    while kept and sum(len(z) + joint for _, z in kept) > room:
        del kept[len(kept) // 2]
        cut = True
    segments: Segments = []
    for _, z in kept:
        segments += [JOIN, z] if segments else [z]
    return _Prompt(
        [before, *segments, after],
        reader.count_tokens(segments) if segments else 0,
        sum(z.source_tokens for _, z in kept),
        compressed.stored_bytes([chunk for chunk, _ in kept], arm),
        cut,
        {"postprocess_ms": took},
    )


def _build_shortened(
    question: Question,
    arm: Arm,
    chunks: Sequence[str],
    around: tuple[str, str],
    room: int,
    cut: bool,
    compressor: ZCompressor,
) -> _Prompt:
    """The prompt of an arm that shortens the chunks.

    Args:
        around: prompt text before and after the context.
        room: most positions of the context.
        cut: whether `around` has been cut.
    """
    assert arm.shorten is not None and arm.rate is not None
    reader = compressor.reader
    before, after = around
    source = sum(reader.count_tokens(chunk) for chunk in chunks)
    text = ""
    started = time.perf_counter()
    if source:
        text = arm.shorten(question.text, chunks, math.ceil(source / arm.rate))
    took = 1e3 * (time.perf_counter() - started)
    text, text_cut = cut_middle(text, room, compressor.tokenizer)
    return _Prompt(
        [before + text + after],
        reader.count_tokens(text) if text else 0,
        source,
        arm.shorten.stored_bytes(chunks),
        cut or text_cut,
        {"shorten_ms": took},
    )


class _Compressed:
    """The Z-tokens of chunks, made once for all arms, as a store would keep them."""

    def __init__(self, compressor: ZCompressor) -> None:
        self.compressor = compressor
        scorer = SentenceScorer(compressor.tokenizer)
        self.focus = QuestionFocus(compressor, scorer, resolve_in_memory(compressor))
        self._known: dict[tuple[str, float], ZSequence] = {}

    def _resolve(self, texts: Sequence[str], rate: float) -> list[ZSequence]:
        """Sequences at one rate."""
        new = [text for text in dict.fromkeys(texts) if (text, rate) not in self._known]
        for text, z in zip(new, self.compressor.compress(new, rate), strict=True):
            self._known[text, rate] = z
        return [self._known[text, rate] for text in texts]

    def prepare(self, texts: Sequence[str], arm: Arm) -> None:
        """Make what an arm needs of texts, beside the question."""
        if arm.shorten is not None:
            arm.shorten.prepare(texts)
        elif arm.name == "ztok-focus":
            self.focus.prepare(texts)
        elif arm.name == "ztok":
            assert arm.rate is not None
            self._resolve(texts, arm.rate)

    def read(self, question: str, chunks: Sequence[str], arm: Arm) -> list[ZSequence]:
        """What an arm reads of the chunks."""
        assert arm.rate is not None
        if arm.name == "ztok":
            return self._resolve(chunks, arm.rate)
        return self.focus.compose(question, chunks, arm.rate)[0]

    def stored_bytes(self, chunks: Sequence[str], arm: Arm) -> int:
        """What of the chunks is kept for an arm."""
        assert arm.rate is not None
        if arm.name == "ztok":
            return sum(len(z.to_bytes()) for z in self._resolve(chunks, arm.rate))
        return self.focus.stored_bytes(chunks)


def chat_frame(tokenizer: Any) -> tuple[str, str]:
    """What a chat model's format puts before and after a user's message; empty without one."""
    if not getattr(tokenizer, "chat_template", None):
        return "", ""
    place = "{message}"
    framed = tokenizer.apply_chat_template(
        [{"role": "user", "content": place}], tokenize=False, add_generation_prompt=True
    )
    head, _, tail = framed.partition(place)
    return head, tail


def cut_end(text: str, limit: int, tokenizer: Any) -> tuple[str, bool]:
    """The text's first whole words of together at most `limit` tokens, and whether it was longer.

    A text of at most `limit` tokens stays whole; a first word that is longer is cut.
    """
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    if len(offsets) <= limit:
        return text, False
    end = offsets[limit][0]
    kept = text[:end].rstrip()
    words = kept.rsplit(maxsplit=1)
    if len(kept) == end and not text[end].isspace() and len(words) == 2:
        kept = words[0]
    return kept, True


def cut_middle(text: str, limit: int, tokenizer: Any) -> tuple[str, bool]:
    """The text's first and last `limit // 2` tokens, and whether anything was cut.

    A text of at most `limit` tokens stays whole.
    """
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    if len(offsets) <= limit:
        return text, False
    half = limit // 2
    if not half:
        return "", True
    return text[: offsets[half - 1][1]] + text[offsets[-half][0] :], True
