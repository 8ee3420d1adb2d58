"""`ZGenerator`: the LLM writes Z-tokens, several source tokens in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ztok_rag.codec.base import BaseLM, decode_exactly
from ztok_rag.codec.chains import Chains
from ztok_rag.codec.model import READ, ZModel
from ztok_rag.codec.read_back import READ_AS, ReadAs, Reading
from ztok_rag.codec.reader import Prompt, ZReader
from ztok_rag.codec.sequence import ZSequence, pack_codes, text_digest
from ztok_rag.errors import ZtokError
from ztok_rag.inputs import repair_surrogates

BY_PROMPT = "by prompt"
"""The adapter that suits the prompt: the reader's for Z-tokens, none for text alone."""


@dataclass(frozen=True)
class WriteScore:
    """How well the LLM writes a given text as Z-tokens.

    Attributes:
        nats: `[n]` cross-entropy of each source token, where Z-tokens end as the head ends them.
        slots: `[n]` the place of each in its Z-token, from 0.
        entropy: `[n]` of the distribution that each was drawn from, in nats.
    """

    nats: NDArray[np.float64]
    slots: NDArray[np.int64]
    entropy: NDArray[np.float64]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """`[n_z]` tokens of each Z-token."""
        firsts = np.flatnonzero(self.slots == 0)
        sizes: NDArray[np.int64] = np.diff(np.append(firsts, len(self.slots)))
        return sizes


class ZGenerator:
    """Writes `ZSequence`s: texts whose tokens are the codes themselves.

    From its state at the end of what it has read, the LLM gives the first code of the next
    Z-token, as it would the next token. The checkpoint's write head gives the others, each from
    those before it (`ztok_rag.codec.write_head`), and the Z-token ends where the head is no longer
    sure that the LLM would have written the same. So Z-tokens are long where the text is plain, and
    a pass of the LLM is taken per Z-token, not per token. Nothing is checked: use `speculate` of
    `ZReader` for what the LLM writes token by token.

    Attributes:
        model: the checkpoint.
        passes: of the LLM so far.
    """

    def __init__(self, model: ZModel) -> None:
        """Set up.

        Raises:
            CheckpointError: the checkpoint has no write head.
        """
        self.model = model
        self.passes = 0
        _ = model.chains  # says so if there is no head
        self._reader = ZReader(model)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path | None = None,
        *,
        base: str | Path | BaseLM | None = None,
        device: str | torch.device | None = None,
    ) -> ZGenerator:
        """Load a checkpoint; arguments and errors as `ZCompressor.from_pretrained`."""
        return cls(ZModel.from_pretrained(checkpoint, base=base, device=device))

    @property
    def _chains(self) -> Chains:
        return self.model.chains  # not kept here, so that copies are small

    @property
    def tokenizer(self) -> Any:
        """The base's Hugging Face tokenizer."""
        return self.model.base.tokenizer

    def text(self, z: ZSequence) -> str:
        """The text of a sequence that holds all its tokens: its codes joined."""
        self._reader.check(z)
        return decode_exactly(self.tokenizer, z.ids)

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 64,
        adapter: str | None = BY_PROMPT,
        ask_first: bool = True,
        read_as: ReadAs = "text",
        confidence: float = 0.5,
        longest: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> ZSequence:
        """Go on from a prompt, with at least one token.

        Args:
            prompt: a string, or strings and `ZSequence`s in reading order.
            max_new_tokens: most source tokens to write.
            adapter: `"read"`, `None` for the plain base, or `BY_PROMPT`.
            ask_first: read the text after the last Z-token before everything, too; as `ZReader`.
            read_as: how what was written is read back. `"text"` takes a position per token, and
                writes best. The others take one per Z-token, and the shipped reader, which was not
                trained to go on from Z-tokens, writes worse.
            confidence: a Z-token ends where the LLM would write the head's next code itself with a
                chance below this, 0 to 1; at 1 each Z-token holds one token.
            longest: most tokens of a Z-token; `None` is as many as the checkpoint reads.
            temperature: 0 takes the likeliest codes, above 0 draws them.
            seed: of the draw.

        Returns:
            What was written. Its digest is of its text, so that `ZCompressor.decompress` checks it.

        Raises:
            ZtokError: the prompt is empty or too long for the base, or an argument is out of range.
            SequenceError: a `ZSequence` was made by another checkpoint.
        """
        pieces = self._write(
            prompt, max_new_tokens, adapter, ask_first, read_as, confidence, longest, temperature,
            seed,
        )  # fmt: skip
        return self._sequence(list(pieces))

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 64,
        adapter: str | None = BY_PROMPT,
        ask_first: bool = True,
        read_as: ReadAs = "text",
        confidence: float = 0.5,
        longest: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[ZSequence]:
        """As `generate`, Z-token by Z-token.

        Each comes as a sequence of its own, without a digest. `ZSequence.concat` of all has the
        codes that `generate` returns. A character whose tokens two Z-tokens share is whole only
        there.
        """
        pieces = self._write(
            prompt, max_new_tokens, adapter, ask_first, read_as, confidence, longest, temperature,
            seed,
        )  # fmt: skip
        return self._stream(pieces)

    def score(
        self,
        text: str,
        *,
        adapter: str | None = None,
        read_as: ReadAs = "text",
        confidence: float = 0.5,
        longest: int | None = None,
    ) -> WriteScore:
        """How likely a text is to be written, from its beginning.

        Where Z-tokens end is decided from what stands before, so that the nats add up to a code
        length of the text, and compare with those of the plain base. Where the head cannot write
        the next token, that it says so is part of them. Arguments and errors as `generate`.
        """
        longest = self._check(confidence, longest, read_as, 0.0)
        ids = self.tokenizer(
            repair_surrogates(text, "the text"),
            add_special_tokens=False,
            split_special_tokens=True,
            verbose=False,
        )["input_ids"]
        if not ids:
            raise ZtokError("the text is empty; give some.")
        if len(ids) >= self.model.base.max_positions:
            raise ZtokError(
                f"the text takes {len(ids)} positions, but the base reads "
                f"{self.model.base.max_positions}; score a part of it."
            )
        start = self.model.base.embed(
            torch.tensor([self.model.start_token], device=self.model.base.device)
        )
        reading = Reading(self.model, start, adapter, read_as)
        nats: list[float] = []
        slots: list[int] = []
        entropy: list[float] = []
        known = {int(token): place for place, token in enumerate(self._chains.ids[:-1].tolist())}
        codes: list[int] = []
        ended = 0.0  # nats of the head's word that it cannot write the token
        while len(nats) < len(ids):
            state, logits = self._read(reading, codes)
            scores = logits.log_softmax(-1)
            codes = [ids[len(nats)]]
            nats.append(ended - float(scores[codes[0]]))
            ended = 0.0
            slots.append(0)
            entropy.append(_entropy(scores))
            memory = self._chains.open(state.unsqueeze(0))
            while len(nats) < len(ids) and len(codes) < longest:
                memory, scores = self._chains.extend(memory, codes[-1:])
                if not self._goes_on(scores[0], confidence):
                    break
                token = ids[len(nats)]
                if token not in known:
                    ended = -float(scores[0, -1])
                    break
                nats.append(-float(scores[0, known[token]]))
                slots.append(len(codes))
                entropy.append(_entropy(scores[0]))
                codes.append(token)
        return WriteScore(np.array(nats), np.array(slots), np.array(entropy))

    def _check(
        self, confidence: float, longest: int | None, read_as: str, temperature: float
    ) -> int:
        """The most tokens of a Z-token; arguments out of range are errors."""
        if not 0 <= confidence <= 1:
            raise ZtokError(f"confidence is a chance, 0 to 1, not {confidence}.")
        if read_as not in READ_AS:
            raise ZtokError(f"read_as is one of {', '.join(READ_AS)}, not {read_as!r}.")
        if not 0 <= temperature < float("inf"):
            raise ZtokError(f"temperature is 0 or above, not {temperature}.")
        most = self.model.config.slots
        if longest is None:
            return most
        if not 1 <= longest <= most:
            raise ZtokError(
                f"a Z-token of this checkpoint holds 1 to {most} tokens, not longest={longest}."
            )
        return longest

    def _goes_on(self, scores: Tensor, confidence: float) -> bool:
        """Whether the head is sure enough of the next code; `[v + 1]` log probabilities."""
        best = scores.max(-1)
        chance = float(self._chains.head.chance(best.values.exp()))
        return int(best.indices) < len(scores) - 1 and chance >= confidence and confidence < 1

    def _write(
        self,
        prompt: Prompt,
        max_new_tokens: int,
        adapter: str | None,
        ask_first: bool,
        read_as: ReadAs,
        confidence: float,
        longest: int | None,
        temperature: float,
        seed: int,
    ) -> Iterator[list[int]]:
        """The codes of each Z-token; errors come at once."""
        most = self._check(confidence, longest, read_as, temperature)
        if max_new_tokens < 1:
            raise ZtokError(f"max_new_tokens is at least 1, not {max_new_tokens}.")
        if adapter == BY_PROMPT:
            has_codes = not isinstance(prompt, str) and any(
                isinstance(segment, ZSequence) for segment in prompt
            )
            adapter = READ if has_codes else None
        inputs = self._reader.to_embeds(
            prompt, adapter=adapter, ask_first=ask_first, max_new_tokens=max_new_tokens
        )
        reading = Reading(self.model, inputs, adapter, read_as)
        draw = _Draw(temperature, seed, self.model.base.device)
        return self._codes(reading, draw, max_new_tokens, most, confidence)

    def _codes(
        self, reading: Reading, draw: _Draw, limit: int, longest: int, confidence: float
    ) -> Iterator[list[int]]:
        ends = self.model.base.end_tokens
        written = 0
        codes: list[int] = []
        while written < limit:
            state, logits = self._read(reading, codes)
            if not written:
                logits = logits.clone()
                logits[sorted(ends)] = -torch.inf
            first = draw.choose(logits)
            if first in ends:
                return
            codes = [first]
            memory = self._chains.open(state.unsqueeze(0))
            while len(codes) < min(longest, limit - written):
                memory, scores = self._chains.extend(memory, codes[-1:])
                if not self._goes_on(scores[0], confidence):
                    break
                token = int(self._chains.ids[draw.choose(scores[0])])
                if token < 0:
                    break
                codes.append(token)
            written += len(codes)
            yield codes

    def _read(self, reading: Reading, codes: Sequence[int]) -> tuple[Tensor, Tensor]:
        self.passes += 1
        return reading.read(codes)

    def _sequence(self, pieces: Sequence[Sequence[int]]) -> ZSequence:
        """What was written, as a sequence with a digest."""
        ids = np.array([token for codes in pieces for token in codes], np.int64)
        sizes = np.array([len(codes) for codes in pieces])
        edges = np.cumsum([0, *sizes])
        starts = [self._characters(ids[:edge]) for edge in edges[:-1]]
        text = decode_exactly(self.tokenizer, ids)
        ends = [*starts[1:], len(text)]
        return ZSequence(
            codes=pack_codes(ids, np.repeat(np.arange(len(sizes)), sizes), self.model.config.slots),
            places=np.arange(len(ids)),
            spans=np.array([starts, ends], np.int64).T,
            source_tokens=len(ids),
            fingerprint=self.model.fingerprint,
            digest=text_digest(text),
            code=self.model.token_code,
        )

    def _stream(self, pieces: Iterator[list[int]]) -> Iterator[ZSequence]:
        ids: list[int] = []
        start = 0
        for codes in pieces:
            ids += codes
            end = self._characters(np.array(ids, np.int64))
            own = np.array(codes, np.int64)
            yield ZSequence(
                codes=pack_codes(own, np.zeros(len(own), np.int64), self.model.config.slots),
                places=np.arange(len(own)),
                spans=np.array([[start, end]], np.int64),
                source_tokens=len(own),
                fingerprint=self.model.fingerprint,
                code=self.model.token_code,
            )
            start = end

    def _characters(self, ids: NDArray[np.int64]) -> int:
        """Whole characters of tokens; a replacement character at the end is one begun."""
        return len(decode_exactly(self.tokenizer, ids).rstrip("\ufffd")) if len(ids) else 0


class _Draw:
    """Takes the likeliest of some scores, or draws one."""

    def __init__(self, temperature: float, seed: int, device: torch.device) -> None:
        self._temperature = temperature
        self._random = torch.Generator(device).manual_seed(seed)

    def choose(self, scores: Tensor) -> int:
        """An index into scores `[n]`."""
        if not self._temperature:
            return int(scores.argmax())
        chances = (scores.double() / self._temperature).softmax(-1)
        return int(torch.multinomial(chances, 1, generator=self._random))


def _entropy(scores: Tensor) -> float:
    """Of log probabilities, in nats."""
    return float(-(scores.exp() * scores.clamp(min=-1e9)).sum())
