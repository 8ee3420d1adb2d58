"""A prompt as it is read: cut at its handles, and looked at once or twice."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ztok_rag.codec.copying import CopyCosts
from ztok_rag.codec.model import READ
from ztok_rag.codec.sequence import ZSequence, sequences_of
from ztok_rag.llamaindex.events import ZTokenSpliceEvent, dispatcher
from ztok_rag.selection.look_twice import LookTwice
from ztok_rag.selection.reading import Reading, read_once
from ztok_rag.storage.handle import split_prompt

if TYPE_CHECKING:
    from ztok_rag.codec.reader import Likely, Segment, ZReader
    from ztok_rag.selection.sentences import SentenceScorer


@dataclass(frozen=True)
class Looks:
    """A prompt cut at its handles.

    Attributes:
        segments: what the answer is read from, in reading order.
        likely: of its sequences, how likely each token is part of the answer; `None` where nothing
            tells.
        sequences: of the handles, as they were before a second look.
        positions: input positions of all looks.
        last: input positions of the look that the answer is read from.
    """

    segments: list[Segment]
    likely: Likely | None
    sequences: list[ZSequence]
    positions: int
    last: int


def look(
    prompt: str,
    reader: ZReader,
    secret: bytes,
    *,
    adapter: str | None,
    ask_first: bool,
    look_twice: bool | LookTwice,
    copying: bool | CopyCosts | None = None,
    scorer: SentenceScorer | None = None,
) -> Looks:
    """Cut a prompt at its handles, take the first look where it is looked at twice, and tell where
    its answer may stand.

    Args:
        prompt: text and handles.
        reader: that answers.
        secret: of the store whose handles are accepted.
        adapter: of the reader.
        ask_first: read what follows the last handle before everything, too.
        look_twice: whether, or how, to look twice.
        copying: whether, or how, the answer is drawn to what is read; `None` as `AnswerOptions`.
        scorer: tells which sentences are about the question, for the second look.

    Raises:
        HandleError: a handle is of another store or checkpoint, or text looks like one.
        ZtokError: the prompt of a look is longer than the base reads.
    """
    started = time.perf_counter()
    segments = split_prompt(prompt, secret, reader.fingerprint, reader.model.token_code)
    sequences = sequences_of(segments)
    ms = 1000 * (time.perf_counter() - started)
    reading, copies_text = Reading([segments]), bool(copying)
    if adapter == READ and look_twice:
        how = LookTwice() if isinstance(look_twice, bool) else look_twice
        reading = how.read(
            reader, segments, ask_first=ask_first, scorer=scorer, copies_text=copies_text
        )
    elif adapter == READ and copying is not False:
        reading = read_once(reader.model, segments, copies_text=copies_text)
    counts = [reader.count_tokens(s, adapter=adapter, ask_first=ask_first) for s in reading.looks]
    if sequences:
        dispatcher.event(
            ZTokenSpliceEvent(
                handles=len(sequences),
                z_tokens=reading.z_tokens,
                prompt_tokens=sum(counts),
                ms=ms,
            )
        )
    return Looks(reading.last, reading.likely, sequences, sum(counts), counts[-1])
