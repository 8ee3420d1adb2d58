"""The prompt of each arm, cut to what the base LLM can read, and the cost of its context."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ztok_rag.codec.sequence import ZSequence
from ztok_rag.evaluation.arms import Arm, utf8_bytes
from ztok_rag.evaluation.questions import Question
from ztok_rag.selection.query_aware import QueryAwareSelector, resolve_in_memory
from ztok_rag.selection.sentences import SentenceScorer

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor

JOIN = "\n\n"
"""The separator between two retrieved chunks, be they text or Z-tokens."""

Segments = list[str | ZSequence]


@dataclass(frozen=True)
class Prompt:
    """A prompt and the cost of its context.

    Attributes:
        segments: the prompt, text and Z-tokens in turn.
        context_tokens: positions of LLM input that the context takes.
        source_tokens: tokens of the text that the context stands for.
        stored_bytes: bytes stored for the context.
        truncated: whether the prompt was cut.
        times: milliseconds of each step that made the context, by name.
    """

    segments: Segments
    context_tokens: int
    source_tokens: int
    stored_bytes: int
    truncated: bool
    times: Mapping[str, float] = field(default_factory=dict)


class Compressed:
    """The Z-tokens of chunks, computed once for all arms, as in a store."""

    def __init__(self, compressor: ZCompressor) -> None:
        self.compressor = compressor
        scorer = SentenceScorer(compressor.tokenizer)
        self.focus = QueryAwareSelector(compressor, scorer, resolve_in_memory(compressor))
        self._known: dict[tuple[str, float], ZSequence] = {}

    def _resolve(self, texts: Sequence[str], rate: float) -> list[ZSequence]:
        """The Z-tokens of texts at one rate."""
        new = [text for text in dict.fromkeys(texts) if (text, rate) not in self._known]
        for text, z in zip(new, self.compressor.compress(new, rate), strict=True):
            self._known[text, rate] = z
        return [self._known[text, rate] for text in texts]

    def prepare(self, texts: Sequence[str], arm: Arm) -> None:
        """Compute what an arm needs of texts and what does not depend on the question."""
        if arm.shorten is not None:
            arm.shorten.prepare(texts)
        elif arm.name == "ztok-focus":
            self.focus.prepare(texts)
        elif arm.name == "ztok":
            assert arm.rate is not None
            self._resolve(texts, arm.rate)

    def read(self, question: str, chunks: Sequence[str], arm: Arm) -> list[ZSequence]:
        """The Z-tokens of the chunks that an arm reads."""
        assert arm.rate is not None
        if arm.name == "ztok":
            return self._resolve(chunks, arm.rate)
        return self.focus.compose(question, chunks, arm.rate)[0]

    def stored_bytes(self, chunks: Sequence[str], arm: Arm) -> int:
        """Bytes of the chunks that are stored for an arm."""
        assert arm.rate is not None
        if arm.name == "ztok":
            return sum(len(z.to_bytes()) for z in self._resolve(chunks, arm.rate))
        return self.focus.stored_bytes(chunks)


def build_prompt(
    question: Question,
    arm: Arm,
    chunks: Sequence[str],
    compressed: Compressed,
    compressor: ZCompressor,
) -> Prompt:
    """The prompt of an arm. If it is too long, the middle of the context is left out."""
    reader = compressor.reader
    # Eight positions are reserved: pieces of a text may take more tokens than the whole.
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
        return Prompt([before + after], 0, 0, 0, cut)
    if arm.shorten is not None:
        return _build_shortened(question, arm, chunks, (before, after), room, cut, compressor)
    if not arm.reads_z_tokens:
        text, text_cut = cut_middle(JOIN.join(chunks), room, compressor.tokenizer)
        tokens = reader.count_tokens(text) if text else 0
        return Prompt([before + text + after], tokens, tokens, utf8_bytes(text), cut or text_cut)

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
    return Prompt(
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
) -> Prompt:
    """The prompt of an arm that shortens the chunks.

    Args:
        around: prompt text before and after the context.
        room: most positions of the context.
        cut: whether `around` was cut.
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
    return Prompt(
        [before + text + after],
        reader.count_tokens(text) if text else 0,
        source,
        arm.shorten.stored_bytes(chunks),
        cut or text_cut,
        {"shorten_ms": took},
    )


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
