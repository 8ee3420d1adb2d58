"""The prompt of each arm, cut to what the base LLM can read, and the cost of its context."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ztok_rag.codec.compressed_text import CompressedText
from ztok_rag.codec.sequence import ZSequence
from ztok_rag.evaluation.arms import Arm, utf8_bytes
from ztok_rag.evaluation.questions import Question
from ztok_rag.selection.look_twice import LookTwice
from ztok_rag.selection.query_aware import QueryAwareSelector, resolve_in_memory
from ztok_rag.selection.reading import read_once
from ztok_rag.selection.sentences import SentenceScorer

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor
    from ztok_rag.codec.reader import Likely

JOIN = "\n\n"
"""The separator between two retrieved chunks, be they text or Z-tokens."""

Segments = list[str | ZSequence]


@dataclass(frozen=True)
class Prompt:
    """A prompt and the cost of its context.

    Attributes:
        segments: the prompt, text and Z-tokens in turn.
        context_tokens: positions of LLM input that the context takes, in all looks together.
        source_tokens: tokens of the text that the context stands for.
        stored_bytes: bytes stored for the context.
        truncated: whether the prompt was cut.
        z_tokens: those of `context_tokens` that are Z-tokens of a compressed text.
        times: milliseconds of each step that made the context, by name.
        likely: of its sequences, how likely each token is part of the answer; `None` where nothing
            tells.
    """

    segments: Segments
    context_tokens: int
    source_tokens: int
    stored_bytes: int
    truncated: bool
    z_tokens: int = 0
    times: Mapping[str, float] = field(default_factory=dict)
    likely: Likely | None = None


class Compressed:
    """Chunks compressed once for all arms and rates, as in a store."""

    def __init__(self, compressor: ZCompressor) -> None:
        self.compressor = compressor
        self._resolve = resolve_in_memory(compressor)
        scorer = SentenceScorer(compressor.tokenizer)
        self.focus = QueryAwareSelector(compressor, scorer, self._resolve)

    def texts(self, chunks: Sequence[str]) -> list[CompressedText]:
        """The chunks, compressed for all rates."""
        return self._resolve(chunks)[0]

    def prepare(self, texts: Sequence[str], arm: Arm) -> None:
        """Compute what an arm needs of texts and what does not depend on the question."""
        if arm.shorten is not None:
            arm.shorten.prepare(texts)
        elif arm.name == "ztok-focus":
            self.focus.prepare(texts)
        elif arm.reads_z_tokens:
            self.texts(texts)

    def read(self, question: str, chunks: Sequence[str], arm: Arm) -> list[ZSequence]:
        """The Z-tokens of the chunks that an arm reads, or looks at first."""
        assert arm.rate is not None
        if arm.name == "ztok-focus":
            return self.focus.compose(question, chunks, arm.rate)[0]
        return [text.at(arm.rate, self.compressor.slots) for text in self.texts(chunks)]

    def stored_bytes(self, chunks: Sequence[str], arm: Arm) -> int:
        """Bytes of the chunks that are stored for an arm."""
        if arm.name == "ztok-focus":
            return self.focus.stored_bytes(chunks)
        return sum(len(text.to_bytes()) for text in self.texts(chunks))


def build_prompt(
    question: Question,
    arm: Arm,
    chunks: Sequence[str],
    compressed: Compressed,
    compressor: ZCompressor,
) -> Prompt:
    """The prompt of an arm. If it is too long, the middle of the context is left out."""
    # Eight positions are reserved: pieces of a text may take more tokens than the whole.
    room = compressor.reader.max_positions - question.max_new_tokens - 8
    before, after = question.before, question.after
    if question.chat and arm.adapter is None:
        head, tail = chat_frame(compressor.tokenizer)
        before, after = head + before, after + tail
    whole = before, after
    if _frame_positions(before, after, arm, compressor) > room:
        before, _ = cut_middle(before, room // 4, compressor.tokenizer)
        after, _ = cut_middle(after, room - room // 4 - 8, compressor.tokenizer)
    cut = (before, after) != whole
    room = max(0, room - _frame_positions(before, after, arm, compressor))

    if arm.rate is None:
        return Prompt([before + after], 0, 0, 0, cut)
    if arm.reads_z_tokens:
        return _build_spliced(question, arm, chunks, (before, after), room, cut, compressed)
    if arm.shorten is not None:
        return _build_shortened(question, arm, chunks, (before, after), room, cut, compressor)
    text, text_cut = cut_middle(JOIN.join(chunks), room, compressor.tokenizer)
    tokens = compressor.count_tokens(text)
    segments = _around(text, (before, after), arm, compressor)
    return Prompt(
        segments,
        tokens,
        tokens,
        utf8_bytes(text),
        cut or text_cut,
        likely=_likely(segments, arm, compressor),
    )


def _frame_positions(before: str, after: str, arm: Arm, compressor: ZCompressor) -> int:
    """Positions of a prompt without its context, those of the question that comes first too."""
    frame = _around("." if arm.rate is not None else "", (before, after), arm, compressor)
    return compressor.reader.count_tokens(frame, adapter=arm.adapter)


def _around(text: str, around: tuple[str, str], arm: Arm, compressor: ZCompressor) -> Segments:
    """A prompt of text between `around`.

    The trained reader gets the text as Z-tokens at rate 1, which are its tokens, so that it knows
    the question when it comes to the text, as it does with other Z-tokens.
    """
    before, after = around
    if arm.adapter is None or not text:
        return [before + text + after]
    return [before, *compressor.compress([text], 1.0), after]


def _build_spliced(
    question: Question,
    arm: Arm,
    chunks: Sequence[str],
    around: tuple[str, str],
    room: int,
    cut: bool,
    compressed: Compressed,
) -> Prompt:
    """The prompt of an arm that reads Z-tokens.

    Args:
        around: prompt text before and after the context.
        room: most positions of the context.
        cut: whether `around` was cut.
    """
    compressor = compressed.compressor
    started = time.perf_counter()
    kept = list(zip(chunks, compressed.read(question.text, chunks, arm), strict=True))
    times = {"postprocess_ms": 1e3 * (time.perf_counter() - started)}
    joint = compressor.count_tokens(JOIN)
    while kept and sum(len(z) + joint for _, z in kept) > room:
        del kept[len(kept) // 2]
        cut = True
    context: Segments = []
    for _, z in kept:
        context += [JOIN, z] if context else [z]
    segments: Segments = [around[0], *context, around[1]]
    reader, scorer = compressor.reader, compressed.focus.scorer
    started = time.perf_counter()
    if arm.name == "ztok-twice":
        reading = LookTwice().read(reader, segments, scorer=scorer)
    else:
        reading = read_once(reader.model, segments)
    times["look_ms"] = 1e3 * (time.perf_counter() - started)
    return Prompt(
        reading.last,
        reading.z_tokens + joint * len(reading.looks) * max(0, len(kept) - 1),
        sum(z.source_tokens for _, z in kept),
        compressed.stored_bytes([chunk for chunk, _ in kept], arm),
        cut,
        reading.z_tokens,
        times,
        reading.likely,
    )


def _build_shortened(
    question: Question,
    arm: Arm,
    chunks: Sequence[str],
    around: tuple[str, str],
    room: int,
    cut: bool,
    compressor: ZCompressor,
) -> Prompt:
    """The prompt of an arm that shortens the chunks; arguments as `_build_spliced`."""
    assert arm.shorten is not None and arm.rate is not None
    source = sum(map(compressor.count_tokens, chunks))
    text = ""
    started = time.perf_counter()
    if source:
        text = arm.shorten(question.text, chunks, math.ceil(source / arm.rate))
    took = 1e3 * (time.perf_counter() - started)
    text, text_cut = cut_middle(text, room, compressor.tokenizer)
    segments = _around(text, around, arm, compressor)
    return Prompt(
        segments,
        compressor.count_tokens(text),
        source,
        arm.shorten.stored_bytes(chunks),
        cut or text_cut,
        times={"shorten_ms": took},
        likely=_likely(segments, arm, compressor),
    )


def _likely(segments: Segments, arm: Arm, compressor: ZCompressor) -> Likely | None:
    """Where the answer to a prompt of text may stand, for an arm that draws it there."""
    if not arm.copies_text:
        return None
    return read_once(compressor.model, segments, copies_text=True).likely


def chat_frame(tokenizer: Any) -> tuple[str, str]:
    """The text before and after a user's message in the chat format; empty without a format."""
    if not getattr(tokenizer, "chat_template", None):
        return "", ""
    place = "{message}"
    framed = tokenizer.apply_chat_template(
        [{"role": "user", "content": place}], tokenize=False, add_generation_prompt=True
    )
    head, _, tail = framed.partition(place)
    return head, tail


def cut_end(text: str, limit: int, tokenizer: Any) -> tuple[str, bool]:
    """The first whole words of a text, of at most `limit` tokens, and whether it was cut.

    A text of at most `limit` tokens is left whole. A first word longer than that is cut.
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
    """The first and last `limit // 2` tokens of a text, and whether it was cut.

    A text of at most `limit` tokens is left whole.
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
