"""`ZReader`: from any mix of text and Z-tokens to text."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
)

from ztok_rag.codec.base import BaseLM
from ztok_rag.codec.batcher import Batcher
from ztok_rag.codec.copying import CopyCosts, CopyFromCodes, CopySource
from ztok_rag.codec.filling import fill_gaps
from ztok_rag.codec.generation import Answer, GreedyDecoder
from ztok_rag.codec.line_breaks import join_lines, runs_with_joined_lines
from ztok_rag.codec.model import READ, ZModel
from ztok_rag.codec.pieces import Pieces, before
from ztok_rag.codec.pointing import ZPlaces, spread
from ztok_rag.codec.prompts import REPEAT_PROMPT
from ztok_rag.codec.sequence import ZSequence, sequences_of
from ztok_rag.codec.speculation import BOTH, HEAD, LOOKUP, Drafter, Speculate, drafts_by
from ztok_rag.codec.told import Told, told_after
from ztok_rag.errors import SequenceError, ZtokError
from ztok_rag.inputs import as_list, repair_surrogates

Segment = str | ZSequence
Prompt = str | Sequence[Segment]
Likely = Sequence[NDArray[np.floating[Any]]]
"""Of each sequence of a prompt `[n]`, how likely each token that it holds is part of the answer.

The text that `told_after` finds may come last, likewise.
"""

_NO_REPEAT = 8  # tokens
_LONGEST_ASKED_FIRST = 256  # tokens


@dataclass(frozen=True)
class PromptCost:
    """What one prompt costs to read.

    Attributes:
        context_tokens: input positions of the prompt; a Z-token is one.
        prefill_ms: time to read the prompt.
        ttft_ms: time to the first answer token, embedding of the prompt included.
        kv_bytes: bytes of KV cache the prompt takes.
    """

    context_tokens: int
    prefill_ms: float
    ttft_ms: float
    kv_bytes: int


@dataclass(frozen=True)
class _Read:
    """A prompt ready to be read.

    Attributes:
        inputs: `[positions, hidden]` input embeddings.
        source: what an answer may copy; `None` where it does not copy.
        known: token ids of the prompt's Z-tokens and texts, which an answer may quote.
        costs: of not copying; `None` is the default.
        is_packed: whether it has Z-tokens that hold more than one token.
        places: where its Z-tokens stand.
    """

    inputs: Tensor
    source: CopySource | None
    known: list[list[int]]
    costs: CopyCosts | None
    is_packed: bool
    places: ZPlaces

    def __len__(self) -> int:
        return len(self.inputs)


class AnswerOptions(TypedDict, total=False):
    """How to answer.

    Attributes:
        max_new_tokens: longest answer, in tokens; by default 64.
        min_new_tokens: the answer does not end before it has so many tokens.
        copy: draw the answer towards what the Z-tokens hold; `None` does so where the prompt has
            Z-tokens that hold more than one token, and `CopyCosts` says how strongly.
        ask_first: read the text after the last Z-token before everything, too, so that the
            reader knows the question when it comes to the Z-tokens; for the trained reader only.
            By default it does.
        speculate: read what may come next in one pass with what was written. It takes fewer
            passes of the LLM. `"lookup"` looks it up where the answer goes on like the prompt or
            like itself (`ztok_rag.codec.speculation`), `"head"` lets the checkpoint's write head
            guess it, and `"both"` guesses where nothing is looked up. `True` is what is quickest.
            In float32 none of them changes an answer, and `None` is `True` there; bf16 rounds
            passes of several tokens otherwise, and some tokens are others, and `None` is `False`.
        no_repeat_ngram_size: no run of so many tokens is written twice, as answers drawn towards
            what is read go in circles where they are long; 0 allows it. `None` is 8 where the
            prompt has Z-tokens that hold more than one token or the answer copies, else 0.
    """

    max_new_tokens: int
    min_new_tokens: int
    copy: bool | CopyCosts | None
    ask_first: bool
    speculate: Speculate
    no_repeat_ngram_size: int | None


class ZReader:
    """Generates text from prompts of text and Z-tokens, greedily.

    `adapter` is `"read"` for the trained reader of text and Z-tokens, or `None` for the plain base
    LLM. `AnswerOptions` are the other arguments that its calls take alike.

    Attributes:
        model: the checkpoint.
        passes: of the LLM so far, to write answers; each reads a batch.
        guessed: how often a draft of the write head had so many tokens, and so many right ones.
    """

    def __init__(self, model: ZModel) -> None:
        self.model = model
        self.passes = 0
        self.guessed: Counter[tuple[int, int]] = Counter()
        self._batcher = Batcher(self)

    def __reduce__(self) -> tuple[type[ZReader], tuple[ZModel]]:
        """A copy reads by the same checkpoint, for askers of its own."""
        return type(self), (self.model,)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path | None = None,
        *,
        base: str | Path | BaseLM | None = None,
        device: str | torch.device | None = None,
    ) -> ZReader:
        """Load a checkpoint; arguments and errors as `ZCompressor.from_pretrained`."""
        return cls(ZModel.from_pretrained(checkpoint, base=base, device=device))

    @property
    def batcher(self) -> Batcher:
        """Answers many askers of this reader together."""
        return self._batcher

    @property
    def tokenizer(self) -> Any:
        """The base's Hugging Face tokenizer."""
        return self.model.base.tokenizer

    @property
    def fingerprint(self) -> str:
        """16 hex digits of what codes mean; it reads only Z-tokens that bear them."""
        return self.model.fingerprint

    @property
    def max_positions(self) -> int:
        """Longest prompt and answer together, in positions."""
        return self.model.base.max_positions

    def count_tokens(
        self, prompt: Prompt, *, adapter: str | None = READ, ask_first: bool = True
    ) -> int:
        """Input positions of a prompt: tokens of its text, and one per Z-token."""
        return sum(
            1 if s is None else len(s) if isinstance(s, ZSequence) else len(self._ids(s, adapter))
            for s in self._arrange(prompt, adapter, ask_first)
        )

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        likely: Sequence[Likely | None] | None = None,
        stop: Sequence[str] = (),
        batch_size: int = 8,
        adapter: str | None = READ,
        **options: Unpack[AnswerOptions],
    ) -> list[str]:
        """Answer prompts, each with at least one token.

        Args:
            prompts: each a string, or strings and `ZSequence`s in reading order. Spaces at the end
                of a prompt are not read by the trained reader, as answers begin with their own.
            likely: of each prompt, see `begin`; `None` where that is not known.
            stop: an answer ends before the first of these.
            batch_size: prompts per forward pass; prompts of like length are read together.
            adapter: reader or plain base.
            options: how to answer, see `AnswerOptions`.

        Raises:
            SequenceError: a `ZSequence` was made by another checkpoint.
            CheckpointError: the write head is to guess, and the checkpoint has none.
            ZtokError: a prompt is empty or too long for the base, the adapter is unknown, or
                `min_new_tokens` is above `max_new_tokens`.
        """
        prompts = as_list(prompts, "prompts")
        answers = [
            self.begin(prompt, likely=own, adapter=adapter, **options)
            for prompt, own in zip(prompts, likely or [None] * len(prompts), strict=True)
        ]
        return self._generate(answers, adapter, stop, batch_size)

    def stream(
        self,
        prompt: Prompt,
        *,
        likely: Likely | None = None,
        stop: Sequence[str] = (),
        adapter: str | None = READ,
        **options: Unpack[AnswerOptions],
    ) -> Iterator[str]:
        """Answer one prompt piece by piece; the pieces join to what `generate` returns."""
        answer = self.begin(prompt, likely=likely, adapter=adapter, **options)
        return self._stream(answer, adapter, stop)

    def begin(
        self,
        prompt: Prompt,
        *,
        likely: Likely | None = None,
        adapter: str | None = READ,
        max_new_tokens: int = 64,
        min_new_tokens: int = 1,
        copy: bool | CopyCosts | None = None,
        ask_first: bool = True,
        speculate: Speculate = None,
        no_repeat_ngram_size: int | None = None,
    ) -> Answer:
        """An answer of which nothing is written, for a `GreedyDecoder`; errors as `generate`.

        Args:
            prompt: a string, or strings and `ZSequence`s in reading order.
            likely: of each sequence `[n]`, how likely each token that it holds is part of the
                answer. Where the answer is drawn to the codes, it is drawn to these the most.
                `ztok_rag.selection.reading` tells; `None` where that is not known.
            adapter: reader or plain base.
            max_new_tokens: the others are those of `AnswerOptions`.
        """
        if not 1 <= min_new_tokens <= max_new_tokens:
            raise ZtokError(
                f"an answer of {min_new_tokens} to {max_new_tokens} tokens cannot be written; "
                "min_new_tokens is at least 1 and at most max_new_tokens."
            )
        read = self._embed(prompt, max_new_tokens, adapter, copy, ask_first, likely)
        return self._answer(read, max_new_tokens, speculate, min_new_tokens, no_repeat_ngram_size)

    def to_embeds(
        self,
        prompt: Prompt,
        *,
        adapter: str | None = READ,
        ask_first: bool = True,
        max_new_tokens: int = 0,
    ) -> Tensor:
        """Input embeddings `[positions, hidden]` of a prompt, in the base's dtype.

        They are what `generate` reads: the start token, the question where it is asked first, and
        text and Z-tokens in their order. An engine that holds the exported reader answers from
        them as this one does with `copy=False` and `no_repeat_ngram_size=0`. With an answer of
        `max_new_tokens` they must fit into the base's context.

        Raises:
            SequenceError: a `ZSequence` was made by another checkpoint.
            ZtokError: the prompt is empty or too long for the base.
        """
        return self._embed(prompt, max_new_tokens, adapter, False, ask_first).inputs

    def measure(self, prompt: Prompt, *, adapter: str | None = READ) -> PromptCost:
        """Read one prompt, produce one token, and say what that cost."""
        started = time.perf_counter()
        read = self._embed(prompt, 1, adapter)
        ready = time.perf_counter()
        self.advance(GreedyDecoder(self.model.base, [self._answer(read, 1, False)], adapter))
        ended = time.perf_counter()
        return PromptCost(
            context_tokens=len(read),
            prefill_ms=1e3 * (ended - ready),
            ttft_ms=1e3 * (ended - started),
            kv_bytes=len(read) * self.model.base.kv_bytes_per_position,
        )

    def repeat(
        self, zs: Sequence[ZSequence], *, batch_size: int = 8, speculate: Speculate = None
    ) -> list[str]:
        """The texts of sequences as the reader sees them: it repeats them word for word.

        Unlike `ZCompressor.decompress`, which joins the codes, this shows what a Z-token's one
        input embedding tells the reader.
        """
        zs = as_list(zs, "sequences to repeat")
        read = [self._embed([z, REPEAT_PROMPT], 0, READ, False, False) for z in zs]
        limits = [z.source_tokens + z.source_tokens // 4 + 16 for z in zs]
        answers = [self._answer(*each, speculate) for each in zip(read, limits, strict=True)]
        return self._generate(answers, READ, (), batch_size)

    @torch.inference_mode()
    def point(self, prompt: Prompt, *, ask_first: bool = True) -> list[NDArray[np.float32]]:
        """Where the answer to a prompt is likely to begin, by the checkpoint's pointer.

        Args:
            prompt: text and sequences in reading order.
            ask_first: read the question before the Z-tokens, too.

        Returns:
            `[n_z]` of each sequence in the prompt, in order, how likely the answer's first token
            stands in each Z-token; together they sum to 1.

        Raises:
            ZtokError: the checkpoint has no pointer.
        """
        pointer = self.model.pointer
        if pointer is None:
            raise ZtokError("this checkpoint has no pointer; train one with `ztok train`.")
        arranged = self._arrange(prompt, READ, ask_first)
        parts = [self._embed_segment(segment, READ) for segment in arranged]
        inputs = torch.cat(parts).unsqueeze(0)
        mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=inputs.device)
        with self.model.base.adapter(READ):
            states = self.model.first_layers(inputs, mask)[0]
        return ZPlaces.of(arranged, parts).point(pointer, states)

    def fill(self, z: ZSequence) -> str:
        """The text of a sequence that left tokens out; the plain base writes these, greedily.

        The tokens that are held, and how many are missing between them, are given.
        """
        self.check(z)
        return fill_gaps(self.model.base, z)

    def check(self, z: ZSequence) -> None:
        """Raise `SequenceError` unless this checkpoint reads the sequence."""
        if z.fingerprint != self.fingerprint:
            raise SequenceError(
                f"these Z-tokens were made by checkpoint {z.fingerprint}, and this reader is "
                f"{self.fingerprint}; compress the text again with this checkpoint."
            )

    def check_room(self, positions: int, max_new_tokens: int) -> None:
        """Raise `ZtokError` if a prompt is empty, or too long for the base with its answer."""
        if not positions:
            raise ZtokError("the prompt is empty; give it some text.")
        if positions + max_new_tokens > self.max_positions:
            raise ZtokError(
                f"the prompt takes {positions} positions and the answer up to "
                f"{max_new_tokens}, but the base reads {self.max_positions}; retrieve fewer "
                "chunks or compress at a higher rate."
            )

    def _arrange(
        self, prompt: Prompt, adapter: str | None, ask_first: bool
    ) -> list[Segment | None]:
        """The prompt's segments in reading order; `None` stands for the start token."""
        if adapter not in (READ, None):
            raise ZtokError(
                f"there is no adapter {adapter!r}; {READ!r} is the trained reader, and None is "
                "the plain base LLM."
            )
        segments: list[Segment] = [prompt] if isinstance(prompt, str) else list(prompt)
        if adapter is not None and segments and isinstance(segments[-1], str):
            # Tokens begin with their space: after one that stands alone, other answers follow.
            segments[-1] = segments[-1].rstrip(" \t")
        segments = [segment for segment in segments if segment]
        if not segments:
            return []
        has_codes = any(isinstance(s, ZSequence) for s in segments)
        if adapter is None:
            return [None, *segments] if isinstance(segments[0], ZSequence) else list(segments)
        last = segments[-1]
        if (
            ask_first
            and has_codes
            and isinstance(last, str)
            and len(self._ids(last, adapter)) <= _LONGEST_ASKED_FIRST
        ):
            return [None, last, "\n\n", *segments]
        return [None, *segments]

    def _ids(self, text: str, adapter: str | None) -> list[int]:
        """Token ids of text in a prompt. The trained reader reads special tokens as text, too."""
        ids: list[int] = self.tokenizer(
            repair_surrogates(text, "the prompt"),
            add_special_tokens=False,
            split_special_tokens=adapter is not None,
            verbose=False,
        )["input_ids"]
        return ids

    @torch.inference_mode()
    def _embed_ids(self, ids: list[int]) -> Tensor:
        base = self.model.base
        return base.embed(torch.tensor(ids, dtype=torch.long, device=base.device))

    def _embed_segment(self, segment: Segment | None, adapter: str | None) -> Tensor:
        if segment is None:
            return self._embed_ids([self.model.start_token])
        if isinstance(segment, str):
            return self._embed_ids(self._ids(segment, adapter))
        self.check(segment)
        return self.model.embed_sequence(segment)

    def _embed(
        self,
        prompt: Prompt,
        max_new_tokens: int,
        adapter: str | None,
        copy: bool | CopyCosts | None = None,
        ask_first: bool = True,
        likely: Likely | None = None,
    ) -> _Read:
        """Reader inputs of a prompt, and what its answer copies."""
        arranged = self._arrange(prompt, adapter, ask_first)
        self.check_room(len(arranged), max_new_tokens)
        parts = [self._embed_segment(segment, adapter) for segment in arranged]
        inputs = torch.cat(parts)
        self.check_room(len(inputs), max_new_tokens)
        sequences = sequences_of(arranged)
        is_packed = any(z.codes.shape[1] > 1 and len(z.ids) > len(z) for z in sequences)
        if copy is None:
            copy = adapter == READ and is_packed
        told = None if likely is None else told_after(arranged, self.tokenizer)
        _check_likely(likely, [len(z.ids) for z in sequences], told)
        source = None
        if copy and sequences:
            lines = [join_lines(z, self.tokenizer) for z in sequences]
            ids = [z.ids for z in sequences]
            if told is not None and likely is not None and len(likely) > len(ids):
                ids.append(told.tokens.ids)
            source = CopySource(ids, likely, lines)
            known = [
                run.tolist()
                for z, own in zip(sequences, lines, strict=True)
                for run in runs_with_joined_lines(z, own)
            ]
        else:
            known = [z.ids.tolist() for z in sequences]
        texts = dict.fromkeys(s for s in arranged if isinstance(s, str))
        known += [self._ids(text, adapter) for text in texts]
        costs = copy if isinstance(copy, CopyCosts) else None
        return _Read(inputs, source, known, costs, is_packed, ZPlaces.of(arranged, parts))

    def _answer(
        self,
        read: _Read,
        limit: int,
        speculate: Speculate,
        least: int = 1,
        no_repeat: int | None = 0,
    ) -> Answer:
        if no_repeat is None:
            no_repeat = _NO_REPEAT if read.is_packed or read.source is not None else 0
        chosen = self._drafts(speculate)
        processors = LogitsProcessorList()
        if read.source is not None:
            end = self.tokenizer.eos_token_id
            processors.append(CopyFromCodes([read.source], end, read.costs))
        if no_repeat > 0:
            processors.append(NoRepeatNGramLogitsProcessor(no_repeat))
        if least > 1:
            base = self.model.base
            ends = sorted(base.end_tokens)
            processors.append(
                MinNewTokensLengthLogitsProcessor(0, least, ends, device=str(base.device))
            )
        return Answer(
            inputs=read.inputs,
            limit=limit,
            processor=processors if processors else None,
            drafter=Drafter(read.known) if chosen in (LOOKUP, BOTH) else None,
            guesses=chosen in (HEAD, BOTH),
            on_read=self._pointing(read),
        )

    def _pointing(self, read: _Read) -> Callable[[Tensor], None] | None:
        """What tells the source where the pointer has an answer begin, from states of the prompt.

        Alone, without what else is known, the pointer misleads as often as it helps.
        """
        source, pointer = read.source, self.model.pointer
        if source is None or source.likely is None or pointer is None:
            return None

        def point(states: Tensor) -> None:
            source.point(spread(read.places.point(pointer, states), read.places.sizes))

        return point

    def _drafts(self, speculate: Speculate) -> str:
        """Where drafts come from; empty without.

        Raises:
            ZtokError: there is no such kind of draft.
            CheckpointError: the write head is asked for, and the checkpoint has none.
        """
        if speculate is None:
            speculate = self.model.base.dtype == torch.float32
        chosen = drafts_by(speculate)
        if chosen in (HEAD, BOTH):
            _ = self.model.chains  # says so if there is none
        return chosen

    def decoder(self, answers: Sequence[Answer], adapter: str | None) -> GreedyDecoder:
        """What writes answers of `begin`, all of one adapter, together."""
        guesses = any(answer.guesses for answer in answers)
        chains = self.model.chains if guesses else None
        points = adapter == READ and any(answer.on_read for answer in answers)
        middle = self.model.config.pointer_layer if points else None
        return GreedyDecoder(self.model.base, answers, adapter, chains, middle)

    def _generate(
        self, answers: Sequence[Answer], adapter: str | None, stop: Sequence[str], batch_size: int
    ) -> list[str]:
        """Texts of answers, written in batches of like length."""
        order = sorted(range(len(answers)), key=lambda i: len(answers[i].inputs))
        for start in range(0, len(order), batch_size):
            batch = [answers[i] for i in order[start : start + batch_size]]
            decoder = self.decoder(batch, adapter)
            while not decoder.done:
                self.advance(decoder)
                for answer in batch:
                    if stop and not answer.done:
                        text = self.text(answer)
                        answer.done = before(text, stop) != text
        return [before(self.text(answer), stop) for answer in answers]

    def _stream(self, answer: Answer, adapter: str | None, stop: Sequence[str]) -> Iterator[str]:
        decoder = self.decoder([answer], adapter)
        pieces = Pieces(stop)
        while not decoder.done and not pieces.stopped:
            self.advance(decoder)
            if piece := pieces.take(self.text(answer), whole=decoder.done):
                yield piece

    def advance(self, decoder: GreedyDecoder) -> None:
        """One pass of the LLM, which is counted."""
        decoder.advance()
        self.passes += 1
        self.guessed.update(decoder.guessed)

    def text(self, answer: Answer) -> str:
        """What is written of an answer."""
        return self.tokenizer.decode(answer.tokens, skip_special_tokens=True)  # type: ignore[no-any-return]


def _check_likely(likely: Likely | None, held: list[int], told: Told | None) -> None:
    """Raise `ZtokError` unless it tells of all tokens held, and of those told or of none."""
    known = [held] if told is None else [held, [*held, len(told)]]
    if likely is not None and list(map(len, likely)) not in known:
        raise ZtokError(
            "how likely tokens are part of the answer must be told of each that each sequence "
            "of the prompt holds."
        )
