"""How a prompt of text and Z-tokens is read, and which of its tokens its answer is drawn to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ztok_rag.codec.base import decode_exactly, tokenize_exactly
from ztok_rag.codec.compressed_text import CompressedText
from ztok_rag.codec.sequence import IntArray, ZSequence, sequences_of
from ztok_rag.codec.told import told_after
from ztok_rag.inputs import repair_surrogates
from ztok_rag.selection.asked import find_question
from ztok_rag.selection.evidence import find_likely
from ztok_rag.selection.sentences import FloatArray

if TYPE_CHECKING:
    from ztok_rag.codec.model import ZModel
    from ztok_rag.codec.reader import Segment


@dataclass(frozen=True)
class Reading:
    """How a prompt is read.

    Attributes:
        looks: the prompt as it is read in each look; the answer is read from the last.
        likely: of each sequence in the last look `[n]`, how likely each token that it holds is
            part of the answer, then of the text that `told_after` finds, if any; `None` where
            nothing tells.
    """

    looks: list[list[Segment]]
    likely: list[FloatArray] | None = None

    @property
    def last(self) -> list[Segment]:
        """The prompt from which the answer is read."""
        return self.looks[-1]

    @property
    def z_tokens(self) -> int:
        """Z-tokens of all looks together."""
        return sum(len(z) for look in self.looks for z in sequences_of(look))


def read_once(model: ZModel, segments: Sequence[Segment], *, copies_text: bool = False) -> Reading:
    """A prompt as it is, and where its answer may stand if it asks a question.

    Args:
        model: whose relevance model tells.
        segments: text and sequences in reading order.
        copies_text: tell it of sequences at rate 1, too, to which answers are not drawn unless
            that is asked for.
    """
    segments, sequences = list(segments), sequences_of(segments)
    is_packed = sum(len(z.places) for z in sequences) > sum(map(len, sequences))
    question = asked_by(segments) if is_packed or (sequences and copies_text) else None
    if question is None or model.selector is None:
        return Reading([segments])
    runs = [z.runs for z in sequences]
    parts = [(z, run) for z, own in zip(sequences, runs, strict=True) for run in own]
    texts, tokens = unpack(parts, model.base.tokenizer)
    told, told_tokens = unpack_told(model, segments)
    found = iter(find_likely(model, question, [*texts, *told], [*tokens, *told_tokens]))
    likely = [np.concatenate([next(found) for _ in own]) for own in runs]
    return Reading([segments], [*likely, *found])


def asked_by(segments: Sequence[Segment]) -> str | None:
    """What the text around the Z-tokens of a prompt asks."""
    at = [i for i, s in enumerate(segments) if isinstance(s, ZSequence)]
    before, after = (
        "".join(s for s in own if isinstance(s, str))
        for own in (segments[: at[0]], segments[at[-1] + 1 :])
    )
    question = find_question(before, after)
    return None if question is None else repair_surrogates(question, "the question")


def unpack(
    parts: Sequence[tuple[ZSequence, slice]], tokenizer: Any
) -> tuple[list[str], list[CompressedText]]:
    """Texts of tokens that sequences hold, and these tokens, which all weigh alike.

    Args:
        parts: sequences, and which of the tokens that each holds, without gaps.
        tokenizer: of the base LLM.
    """
    ids = [z.ids[run] for z, run in parts]
    texts = [decode_exactly(tokenizer, own) for own in ids]
    alone = tokenize_exactly(tokenizer, texts)
    compressed = [
        _unweighed(own, z.run_starts(run, tokens), text, z)
        for (z, run), own, text, tokens in zip(parts, ids, texts, alone, strict=True)
    ]
    return texts, compressed


def unpack_told(
    model: ZModel, segments: Sequence[Segment]
) -> tuple[list[str], list[CompressedText]]:
    """As `unpack`, the text that `told_after` finds in a prompt; none where it finds none."""
    told = told_after(segments, model.base.tokenizer)
    if told is None:
        return [], []
    (z, *_) = sequences_of(segments)
    return [told.text], [_unweighed(told.tokens.ids, told.tokens.starts, told.text, z)]


def _unweighed(ids: IntArray, starts: IntArray, text: str, z: ZSequence) -> CompressedText:
    """Tokens of a text as of the checkpoint of `z`, which all weigh alike."""
    return CompressedText(
        ids=ids,
        levels=np.zeros(len(ids), np.uint8),
        starts=starts,
        characters=len(text),
        fingerprint=z.fingerprint,
        digest=z.digest,
        code=z.code,
    )
