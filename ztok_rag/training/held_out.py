"""Scores on held-out data without generating: how well each next token is predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from ztok_rag.codec.compressed_text import CompressedText
from ztok_rag.codec.compressor import ZCompressor, batches_by_size
from ztok_rag.codec.model import READ
from ztok_rag.codec.packer import EMPTY
from ztok_rag.training.objective import target_nats
from ztok_rag.training.passages import Passage
from ztok_rag.training.phrases import Phrases


@dataclass
class TokenScores:
    """Predictions of one kind, summed over each of `n` passages.

    Attributes:
        nats: `[n]` sum of the cross-entropies.
        right: `[n]` tokens that were the likeliest.
        tokens: `[n]` tokens predicted.
    """

    nats: NDArray[np.float64]
    right: NDArray[np.float64]
    tokens: NDArray[np.float64]

    @property
    def mean_nats(self) -> float:
        """Nats per token."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def accuracy(self) -> float:
        """Share of tokens predicted right."""
        return float(self.right.sum() / self.tokens.sum())


@dataclass(frozen=True)
class _Scored:
    """A prompt, what should follow it, and whose it is."""

    codes: NDArray[np.int64]
    target: NDArray[np.int64]
    passage: int


@torch.inference_mode()
def score_answers(
    compressor: ZCompressor,
    passages: Sequence[Passage],
    rate: float,
    *,
    asks_first: bool = True,
    batch_positions: int = 4096,
) -> TokenScores:
    """How well the reader predicts the first answer of every question, of one passage each.

    Args:
        compressor: of the checkpoint.
        passages: with questions.
        rate: of the passages.
        asks_first: ask before the context, too.
        batch_positions: read at once.
    """
    texts = compressor.compress_all_rates([passage.text for passage in passages])
    prompts = [
        prompt
        for number, (passage, text) in enumerate(zip(passages, texts, strict=True))
        for prompt in _questions(compressor, passage, text, rate, asks_first, number)
    ]
    return _score(compressor, prompts, len(passages), batch_positions)


@torch.inference_mode()
def score_repeating(
    compressor: ZCompressor,
    texts: Sequence[str],
    rate: float,
    *,
    tokens: int = 128,
    batch_positions: int = 4096,
) -> TokenScores:
    """How well the reader predicts the first tokens of texts that it reads as Z-tokens."""
    phrases = _phrases(compressor)
    prompts = []
    for number, text in enumerate(compressor.compress_all_rates(texts)):
        target = text.ids[:tokens]
        first = text.view(np.arange(len(target)), rate, compressor.slots)
        parts: list[Any] = [phrases.start, first.codes, phrases.repeat, target[:-1]]
        prompts.append(_Scored(_joined(parts, compressor.slots), target, number))
    return _score(compressor, prompts, len(texts), batch_positions)


def _phrases(compressor: ZCompressor) -> Phrases:
    return Phrases.of(compressor.tokenizer, compressor.model.start_token)


def _questions(
    compressor: ZCompressor,
    passage: Passage,
    text: CompressedText,
    rate: float,
    asks_first: bool,
    number: int,
) -> Iterator[_Scored]:
    phrases, tokenizer = _phrases(compressor), compressor.tokenizer
    template = phrases.templates[0]
    codes = text.at(rate, compressor.slots).codes
    for question, answers in passage.questions:
        spaced = [" " + words.strip() for words in (question, answers[0])]
        encoding = tokenizer(spaced, add_special_tokens=False, verbose=False)["input_ids"]
        asked, answer = (np.array(ids, np.int64) for ids in encoding)
        tail = np.concatenate([template.middle, asked, template.end])
        target = np.concatenate([answer, phrases.end]).astype(np.int64)
        parts: list[Any] = [phrases.start, codes, tail, target[:-1]]
        if asks_first:
            parts[1:1] = [tail, phrases.blank]
        yield _Scored(_joined(parts, compressor.slots), target, number)


def _joined(parts: Sequence[NDArray[Any]], slots: int) -> NDArray[np.int64]:
    """Codes `[n, slots]` of parts that are token ids or codes."""
    rows = []
    for part in parts:
        codes = np.full((len(part), slots), EMPTY, np.int64)
        codes[:, : part.shape[1] if part.ndim == 2 else 1] = (
            part if part.ndim == 2 else part[:, None]
        )
        rows.append(codes)
    return np.concatenate(rows)


def _score(
    compressor: ZCompressor, prompts: Sequence[_Scored], passages: int, batch_positions: int
) -> TokenScores:
    model, base = compressor.model, compressor.model.base
    scores = TokenScores(*np.zeros((3, passages)))
    for batch in batches_by_size([len(p.codes) for p in prompts], batch_positions):
        own = [prompts[i] for i in batch]
        rows = [model.embed_codes(torch.from_numpy(p.codes).to(base.device)) for p in own]
        with base.adapter(READ):
            # What pads a row comes after it, where a causal LM does not look.
            hidden = base.decoder(
                inputs_embeds=pad_sequence(rows, batch_first=True), use_cache=False
            ).last_hidden_state
        for row, prompt in enumerate(own):
            end, count = len(prompt.codes), len(prompt.target)
            target = torch.from_numpy(prompt.target).to(base.device)
            nats, right = target_nats(model, hidden[row, end - count : end], target)
            scores.nats[prompt.passage] += float(nats.sum())
            scores.right[prompt.passage] += float(right.sum())
            scores.tokens[prompt.passage] += count
    return scores
