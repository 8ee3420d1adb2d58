"""Self-information pruning, the method of Selective Context (arXiv 2310.06201)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from peers.text import count, encode, in_order
from ztok_rag.codec.compressor import surprisal
from ztok_rag.evaluation import Shorten, cut_end

if TYPE_CHECKING:
    from ztok_rag.codec.model import ZModel


_WINDOW = 1024
"""Most tokens of a window; tokens are scored given the earlier ones of their window."""

_BATCH_TOKENS = 4096
"""Most tokens in a batch of windows."""


class SelfInformation(Shorten):
    """Keep the words that the plain base LLM finds most surprising, in text order.

    Selective Context (arXiv 2310.06201) with words as lexical units. The self-information of a
    word is the mean surprisal of its tokens, in nats. Each chunk is scored on its own.
    """

    def __init__(self, model: ZModel) -> None:
        self.model = model

    def __call__(self, question: str, chunks: Sequence[str], budget: int) -> str:
        tokenizer = self.model.base.tokenizer
        places: list[tuple[int, str]] = []
        scores: list[float] = []
        for chunk, (text, nats) in enumerate(zip(chunks, self._surprisal(chunks), strict=True)):
            for word, value in _word_means(text, tokenizer, nats):
                places.append((chunk, word))
                scores.append(value)
        if not places:
            return ""
        order = sorted(range(len(places)), key=lambda i: -scores[i])
        costs = [len(ids) for ids in encode(tokenizer, [f" {word}" for _, word in places])]
        taken: list[int] = []
        room = budget
        for i in order:
            if costs[i] <= room:
                taken.append(i)
                room -= costs[i]
        # `costs` leaves out the blank lines between chunks, so the text may still be too long.
        while len(taken) > 1:
            text = in_order({i: places[i][1] for i in taken}, places)
            if count(tokenizer, text) <= budget:
                return text
            taken.pop()
        best = taken[0] if taken else order[0]
        return cut_end(places[best][1], budget, tokenizer)[0]

    def _surprisal(self, chunks: Sequence[str]) -> list[NDArray[np.float32]]:
        """Surprisal of each chunk's tokens, `[n]` in nats. Long chunks are cut into windows."""
        ids = encode(self.model.base.tokenizer, chunks)
        windows = [
            (chunk, tokens[start : start + _WINDOW])
            for chunk, tokens in enumerate(ids)
            for start in range(0, len(tokens), _WINDOW)
        ]
        parts: list[list[NDArray[np.float32]]] = [[] for _ in chunks]
        at_once = max(1, _BATCH_TOKENS // max((len(w) for _, w in windows), default=1))
        for start in range(0, len(windows), at_once):
            batch = windows[start : start + at_once]
            nats = self._nats([window for _, window in batch])
            ends = np.cumsum([len(window) for _, window in batch])[:-1]
            for (chunk, _), part in zip(batch, np.split(nats, ends), strict=True):
                parts[chunk].append(part)
        return [np.concatenate(p) if p else np.zeros(0, np.float32) for p in parts]

    @torch.inference_mode()
    def _nats(self, windows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Surprisal of all tokens of windows, one window after another."""
        base = self.model.base
        ids = torch.full((len(windows), max(map(len, windows)) + 1), self.model.start_token)
        for row, window in enumerate(windows):
            ids[row, 1 : len(window) + 1] = torch.tensor(window)
        ends = torch.tensor([len(window) for window in windows])
        ids, ends = ids.to(base.device), ends.to(base.device)
        places = torch.arange(ids.shape[1], device=base.device)
        with base.adapter(None):
            hidden = base.decoder(
                input_ids=ids, attention_mask=(places <= ends[:, None]).long(), use_cache=False
            ).last_hidden_state
        real = places[1:] <= ends[:, None]
        nats, _ = surprisal(hidden[:, :-1][real], ids[:, 1:][real], base.head)
        return nats.astype(np.float32)


def _word_means(
    text: str, tokenizer: Any, values: NDArray[np.float32]
) -> Iterator[tuple[str, float]]:
    """The words of a text, each with the mean value of the tokens that end in it.

    Args:
        values: `[n]`, one per token of the text.
    """
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    ends = np.asarray([end for _, end in offsets])
    for word in re.finditer(r"\S+", text):
        own = values[(ends > word.start()) & (ends <= word.end())]
        if own.size:
            yield word.group(), float(own.mean())
