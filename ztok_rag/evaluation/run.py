"""Answer questions by every arm, and reconstruct texts at every rate."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ztok_rag.codec.sequence import ZSequence
from ztok_rag.evaluation.arms import Arm
from ztok_rag.evaluation.log import PredictionLog
from ztok_rag.evaluation.prompts import Compressed, Prompt, build_prompt
from ztok_rag.evaluation.questions import Question, sample

if TYPE_CHECKING:
    from tqdm import tqdm

    from ztok_rag.codec.compressor import ZCompressor


RECONSTRUCTION_ARMS = ("ztok", "repeat")
"""Ways to a text from its Z-tokens: decompression, and the reader repeating what it reads."""

_SHORTEN_AT_ONCE = 4
"""Batches whose contexts are shortened together, before the first of them is answered."""


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
    """Answer every question by every arm, into `log`. Answers already in `log` are not run again.

    Args:
        questions: of one task.
        retrieve: returns the chunks of each question, in reading order.
        batch_size: most prompts in a batch.
        measured: number of questions per arm whose prefill is timed.
        bar: progress bar, advanced by one per answer, including those already in `log`.
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

    compressed = Compressed(compressor)
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
            prompts: dict[str, Prompt] = {}
            for question in group:
                found_chunks = chunks.get(question.id, ())
                if arm.shorten is not None and found_chunks:
                    show(f"{arm.label}, shortening for question {question.id}")
                    if question is todo[arm][0]:
                        # The first call loads models; it is kept out of the measured time.
                        arm.shorten(question.text, found_chunks, 1)
                prompts[question.id] = build_prompt(
                    question, arm, found_chunks, compressed, compressor
                )
            show(arm.label)
            for batch in _batches(group, prompts, arm, reader, batch_size):
                outputs = reader.generate(
                    [prompts[q.id].segments for q in batch],
                    likely=[prompts[q.id].likely for q in batch],
                    max_new_tokens=batch[0].max_new_tokens,
                    adapter=arm.adapter,
                    batch_size=batch_size,
                    ask_first=not batch[0].summary,
                    min_new_tokens=batch[0].min_new_tokens,
                    copy=True if arm.copies_text else None,
                )
                records = []
                for question, output in zip(batch, outputs, strict=True):
                    record = prediction_record(question, arm, prompts[question.id], output)
                    if question.gold is not None and arm.rate is not None:
                        record["gold_retrieved"] = question.gold in chunks[question.id]
                    if question.id in timed:
                        segments = prompts[question.id].segments
                        if not measured_before:
                            reader.measure(segments, adapter=arm.adapter)
                            measured_before = True
                        cost = reader.measure(segments, adapter=arm.adapter)
                        first_look = record.get("look_ms", 0.0)
                        record |= {
                            "prefill_ms": round(cost.prefill_ms + first_look, 3),
                            "ttft_ms": round(cost.ttft_ms + first_look, 3),
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
    """Compress every text and bring it back by each of `RECONSTRUCTION_ARMS`, into `log`.

    Texts already in `log` are not run again.

    Args:
        texts: the only answer of each is the text to reconstruct. It may be cut from the longer
            `text`.
        rates: source tokens per Z-token.
        batch_size: most texts in a batch.
        bar: progress bar, advanced by one per text, rate and arm, without those already in `log`.
    """
    for arm in reconstruction_arms(rates):
        assert arm.rate is not None
        todo = [text for text in texts if log.get(text, arm) is None]
        todo.sort(key=lambda text: -len(text.answers[0]))
        for start in range(0, len(todo), batch_size):
            batch = todo[start : start + batch_size]
            if bar is not None:
                bar.set_postfix_str(f"{batch[0].task}: {arm.label}")
            zs = compressor.compress([text.answers[0] for text in batch], rate=arm.rate)
            if arm.name == "repeat":
                outputs = compressor.reader.repeat(zs, batch_size=batch_size)
            else:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the scores say which are not exact
                    outputs = compressor.decompress(zs)
            log.append(
                prediction_record(text, arm, _whole(text, z), output)
                for text, z, output in zip(batch, zs, outputs, strict=True)
            )
            if bar is not None:
                bar.update(len(batch))


def reconstruction_arms(rates: Sequence[float]) -> list[Arm]:
    """The arms of `reconstruct`, each at every rate."""
    return [Arm(name, float(rate), "read") for name in RECONSTRUCTION_ARMS for rate in rates]


def _whole(text: Question, z: ZSequence) -> Prompt:
    """A prompt of the Z-tokens of a text and nothing else."""
    cut = text.answers[0] != text.text
    return Prompt([z], len(z), z.source_tokens, len(z.to_bytes()), cut, len(z))


def prediction_record(question: Question, arm: Arm, prompt: Prompt, output: str) -> dict[str, Any]:
    """What a `PredictionLog` keeps of an answer."""
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
        **({"z_tokens": prompt.z_tokens} if prompt.z_tokens else {}),
        **{name: round(value, 3) for name, value in prompt.times.items()},
    }


def _groups(
    questions: Sequence[Question], arm: Arm, batch_size: int
) -> Iterator[Sequence[Question]]:
    """The questions in groups whose prompts are built together; small groups where that is slow."""
    size = len(questions) if arm.shorten is None else _SHORTEN_AT_ONCE * batch_size
    for start in range(0, len(questions), max(1, size)):
        yield questions[start : start + size]


def _batches(
    questions: Sequence[Question],
    prompts: Mapping[str, Prompt],
    arm: Arm,
    reader: Any,
    batch_size: int,
) -> list[list[Question]]:
    """Batches by falling prompt length, so that padding is small and the longest come first."""
    most_positions = 2 * int(reader.max_positions)
    lengths = {
        q.id: reader.count_tokens(prompts[q.id].segments, adapter=arm.adapter) for q in questions
    }
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
