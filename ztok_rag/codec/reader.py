"""`ZReader`: from any mix of text and Z-tokens to text."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList

from ztok_rag.codec.base import BaseLM
from ztok_rag.codec.model import ZModel
from ztok_rag.codec.prompts import REPEAT_PROMPT
from ztok_rag.codec.sequence import ZSequence
from ztok_rag.errors import SequenceError, ZtokError

Segment = str | ZSequence
Prompt = str | Sequence[Segment]


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


class ZReader:
    """Generates text from prompts of text and Z-tokens, greedily.

    The `adapter` of each call is `"read"` (the trained reader), `None` (the plain base LLM), or
    another adapter that the checkpoint ships.
    """

    def __init__(self, model: ZModel) -> None:
        self.model = model

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
    def tokenizer(self) -> Any:
        """The base's Hugging Face tokenizer."""
        return self.model.base.tokenizer

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the checkpoint; it reads only Z-tokens that bear them."""
        return self.model.fingerprint

    @property
    def adapters(self) -> tuple[str, ...]:
        """Adapters that can be named in a call."""
        return tuple(name for name in self.model.config.adapters if name != "compress")

    @property
    def max_positions(self) -> int:
        """Longest prompt and answer together, in positions."""
        return self.model.base.max_positions

    def count_tokens(self, prompt: Prompt) -> int:
        """Input positions of a prompt: tokens of its text, and one per Z-token.

        A prompt that starts with Z-tokens takes one more, see `ZModel.sink`.
        """
        segments = _with_start(prompt)
        return sum(
            1 if s is None else len(s) if isinstance(s, ZSequence) else len(self._ids(s))
            for s in segments
        )

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        adapter: str | None = "read",
        stop: Sequence[str] = (),
        batch_size: int = 8,
    ) -> list[str]:
        """Answer prompts, each with at least one token.

        Args:
            prompts: each a string, or strings and `ZSequence`s in reading order.
            max_new_tokens: longest answer, in tokens.
            adapter: see the class.
            stop: an answer ends before the first of these.
            batch_size: prompts per forward pass; prompts of like length are read together.

        Raises:
            SequenceError: a `ZSequence` was made by another checkpoint.
            ZtokError: a prompt is empty or too long for the base, or the adapter is unknown.
        """
        if isinstance(prompts, str):
            raise ZtokError("generate takes a list of prompts; put the prompt in a list.")
        embedded = [self._embed(prompt, max_new_tokens) for prompt in prompts]
        return self._generate(embedded, max_new_tokens, adapter, stop, batch_size)

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 64,
        adapter: str | None = "read",
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """Answer one prompt piece by piece; the pieces join to what `generate` returns."""
        embedded = self._embed(prompt, max_new_tokens)
        self._check_adapter(adapter)
        return self._stream(embedded, max_new_tokens, adapter, stop)

    def measure(self, prompt: Prompt, *, adapter: str | None = "read") -> PromptCost:
        """Read one prompt, produce one token, and say what that cost."""
        self._check_adapter(adapter)
        started = time.perf_counter()
        embedded = self._embed(prompt, 1)
        ready = time.perf_counter()
        next(self._tokens(embedded, 1, adapter))
        ended = time.perf_counter()
        positions = len(embedded)
        return PromptCost(
            context_tokens=positions,
            prefill_ms=1e3 * (ended - ready),
            ttft_ms=1e3 * (ended - started),
            kv_bytes=positions * self.model.base.kv_bytes_per_position,
        )

    def decompress(self, zs: Sequence[ZSequence], *, batch_size: int = 8) -> list[str]:
        """See `ZCompressor.decompress`."""
        prompts, limits = [], []
        sink, repeat = self._embed_ids([self.model.sink]), self._embed_text(REPEAT_PROMPT)
        for z in zs:
            self.check(z)
            longest = z.source_tokens / len(z)
            for codes in z.split_windows():
                prompts.append(torch.cat([sink, self._embed_codes(codes), repeat]))
                limits.append(math.ceil(1.5 * longest * len(codes)) + 16)
        limit = max(limits, default=1)
        texts = iter(self._generate(prompts, limit, "read", (), batch_size, limits))
        return ["".join(next(texts) for _ in z.windows) for z in zs]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]  # type: ignore[no-any-return]

    def check(self, z: ZSequence) -> None:
        """Raise `SequenceError` unless this checkpoint made the sequence."""
        if z.fingerprint != self.fingerprint:
            raise SequenceError(
                f"these Z-tokens were made by checkpoint {z.fingerprint}, and this reader is "
                f"{self.fingerprint}; compress the text again with this checkpoint."
            )

    def _check_adapter(self, adapter: str | None) -> None:
        if adapter is not None and adapter not in self.adapters:
            raise ZtokError(
                f"this checkpoint has no adapter {adapter!r}; it has {', '.join(self.adapters)}, "
                "and None is the plain base LLM."
            )

    @torch.inference_mode()
    def _embed_ids(self, ids: list[int]) -> Tensor:
        device = self.model.base.device
        return self.model.embed_text(torch.tensor(ids, dtype=torch.long, device=device))

    def _embed_text(self, text: str) -> Tensor:
        return self._embed_ids(self._ids(text))

    @torch.inference_mode()
    def _embed_codes(self, codes: NDArray[np.uint16]) -> Tensor:
        base = self.model.base
        indices = torch.from_numpy(codes.astype(np.int64)).to(base.device)
        return self.model.quantizer.embed_codes(indices, base.embeddings)

    def _embed(self, prompt: Prompt, max_new_tokens: int) -> Tensor:
        """Reader inputs `[positions, width]` of a prompt."""
        parts = []
        for segment in _with_start(prompt):
            if segment is None:
                parts.append(self._embed_ids([self.model.sink]))
            elif isinstance(segment, ZSequence):
                self.check(segment)
                parts.append(self._embed_codes(segment.codes))
            else:
                parts.append(self._embed_text(segment))
        if not parts:
            raise ZtokError("the prompt is empty; give it some text.")
        embedded = torch.cat(parts)
        if len(embedded) + max_new_tokens > self.max_positions:
            raise ZtokError(
                f"the prompt takes {len(embedded)} positions and the answer up to "
                f"{max_new_tokens}, but the base reads {self.max_positions}; retrieve fewer "
                "chunks or compress at a higher rate."
            )
        return embedded

    @torch.inference_mode()
    def _generate(
        self,
        embedded: Sequence[Tensor],
        max_new_tokens: int,
        adapter: str | None,
        stop: Sequence[str],
        batch_size: int,
        limits: Sequence[int] | None = None,
    ) -> list[str]:
        """Answers of embedded prompts, in batches of like length, padded on the left."""
        self._check_adapter(adapter)
        base, tokenizer = self.model.base, self.tokenizer
        answers = [""] * len(embedded)
        order = sorted(range(len(embedded)), key=lambda i: len(embedded[i]))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            longest = max(len(embedded[i]) for i in batch)
            inputs = embedded[batch[0]].new_zeros(len(batch), longest, embedded[batch[0]].shape[1])
            mask = torch.zeros(len(batch), longest, dtype=torch.long, device=base.device)
            for row, i in enumerate(batch):
                inputs[row, longest - len(embedded[i]) :] = embedded[i]
                mask[row, longest - len(embedded[i]) :] = 1
            criteria = [_StopStrings(tokenizer, stop)] if stop else []
            limit = max(limits[i] for i in batch) if limits else max_new_tokens
            embeddings, added = self.model.split(inputs)
            with base.adapter(adapter), self.model.injecting(added):
                ids = base.model.generate(
                    inputs_embeds=embeddings,
                    attention_mask=mask,
                    max_new_tokens=limit,
                    min_new_tokens=1,
                    do_sample=False,
                    pad_token_id=tokenizer.eos_token_id,
                    stopping_criteria=StoppingCriteriaList(criteria),
                )
            for row, i in enumerate(batch):
                tokens = ids[row][: limits[i]] if limits else ids[row]
                answers[i] = _before(tokenizer.decode(tokens, skip_special_tokens=True), stop)
        return answers

    def _stream(
        self, embedded: Tensor, max_new_tokens: int, adapter: str | None, stop: Sequence[str]
    ) -> Iterator[str]:
        tokens: list[int] = []
        sent = ""
        # Text that might yet turn out to begin a stop string is held back.
        held = max((len(s) for s in stop), default=1) - 1
        for token in self._tokens(embedded, max_new_tokens, adapter):
            tokens.append(token)
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            final = _before(text, stop)
            # A trailing replacement character is a letter whose bytes are not all here yet.
            ready = final if final != text else text[: len(text) - held].removesuffix("\ufffd")
            if len(ready) > len(sent):
                yield ready[len(sent) :]
                sent = ready
            if final != text:
                return
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        if len(text) > len(sent):
            yield text[len(sent) :]

    def _tokens(self, embedded: Tensor, limit: int, adapter: str | None) -> Iterator[int]:
        """Greedy token ids for one prompt, the end token last; holds the base per token."""
        base = self.model.base
        cache = DynamicCache(config=base.model.config)
        inputs = embedded.unsqueeze(0)
        for number in range(limit):
            embeddings, added = self.model.split(inputs)
            with torch.inference_mode(), base.adapter(adapter), self.model.injecting(added):
                hidden = base.decoder(
                    inputs_embeds=embeddings, past_key_values=cache, use_cache=True
                ).last_hidden_state
                logits = base.head(hidden[0, -1])
                if number == 0:
                    logits[self.tokenizer.eos_token_id] = -torch.inf
                token = int(logits.argmax())
                inputs = self._embed_ids([token]).unsqueeze(0)
            yield token
            if token == self.tokenizer.eos_token_id:
                return


class _StopStrings(StoppingCriteria):  # type: ignore[misc]
    """Ends each row of a batch once its text holds a stop string."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.stop = stop

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        texts = self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        done = [any(s in text for s in self.stop) for text in texts]
        return torch.tensor(done, device=input_ids.device)


def _with_start(prompt: Prompt) -> list[Segment | None]:
    """The prompt's segments that are not empty; `None` stands for the sink."""
    segments = [prompt] if isinstance(prompt, str) else prompt
    kept: list[Segment | None] = [s for s in segments if s]
    return [None, *kept] if kept and isinstance(kept[0], ZSequence) else kept


def _before(text: str, stop: Sequence[str]) -> str:
    """The text up to the first stop string in it."""
    ends = [at for at in (text.find(s) for s in stop) if at >= 0]
    return text[: min(ends)] if ends else text
