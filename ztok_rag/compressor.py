"""`ZCompressor`: texts to Z-tokens, and back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ztok_rag.base import BaseLM
from ztok_rag.errors import ZtokError
from ztok_rag.model import ZModel
from ztok_rag.reader import ZReader
from ztok_rag.sequence import EMPTY, ZSequence

MAX_RATE = 64.0


class ZCompressor:
    """Compresses texts into discrete, variable-length `ZSequence`s.

    Length and codes of a window come from one forward pass over the base's first layers; denser
    text gets more Z-tokens. Texts of any length are split into windows, and nothing is cut off.
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
    ) -> ZCompressor:
        """Load a checkpoint.

        Args:
            checkpoint: folder of a checkpoint; `None` is the one shipped with the package.
            base: the base LLM, its id or folder; `None` is the one the checkpoint names.
            device: `None` is CUDA when there is one, else the CPU.

        Raises:
            CheckpointError: missing or damaged, or trained on another base.
        """
        return cls(ZModel.from_pretrained(checkpoint, base=base, device=device))

    @property
    def reader(self) -> ZReader:
        """The reader on the same weights."""
        return ZReader(self.model)

    @property
    def tokenizer(self) -> Any:
        """The base's Hugging Face tokenizer."""
        return self.model.base.tokenizer

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the checkpoint; codes of another mean something else."""
        return self.model.fingerprint

    @property
    def depth(self) -> int:
        """Codes per Z-token."""
        return self.model.config.depth

    def count_tokens(self, text: str) -> int:
        """Tokens of the base LLM in a text."""
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def compress(
        self, texts: Sequence[str], rate: float = 4.0, *, batch_tokens: int = 4096
    ) -> list[ZSequence]:
        """Compress texts.

        Args:
            texts: any number, of any length.
            rate: source tokens per Z-token, 1 to 64; each window strays from it by a few per
                cent, as its content asks.
            batch_tokens: padded source tokens per forward pass.

        Raises:
            ZtokError: the rate is out of range, or a text is not a string or is empty.
        """
        return self.compress_rates(texts, (rate,), batch_tokens=batch_tokens)[rate]

    def compress_rates(
        self, texts: Sequence[str], rates: Sequence[float], *, batch_tokens: int = 4096
    ) -> dict[float, list[ZSequence]]:
        """Compress texts at several rates, with one forward pass for all; else as `compress`."""
        if isinstance(texts, str):
            raise ZtokError("compress takes a list of texts; put the text in a list.")
        for rate in rates:
            if not (math.isfinite(rate) and 1.0 <= rate <= MAX_RATE):
                raise ZtokError(f"the rate must be from 1 to {MAX_RATE:.0f}, not {rate}.")
        for index, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ZtokError(f"text {index} has no words to compress; leave it out.")
        if not texts:
            return {rate: [] for rate in rates}
        encoding = self.tokenizer(
            list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids: list[list[int]] = encoding["input_ids"]
        starts = [np.array([a for a, _ in row]) for row in encoding["offset_mapping"]]
        cuts = [self._cut(text, start) for text, start in zip(texts, starts, strict=True)]
        windows = [ids[i][a:b] for i, cut in enumerate(cuts) for a, b in cut]
        encoded = {1.0: [self._name(window) for window in windows]} if 1 in rates else {}
        if several := [rate for rate in rates if rate > 1]:
            encoded |= self._encode(windows, several, batch_tokens)
        return {rate: self._sequences(texts, starts, cuts, iter(encoded[rate])) for rate in rates}

    def _sequences(
        self,
        texts: Sequence[str],
        starts: Sequence[np.ndarray],
        cuts: Sequence[list[tuple[int, int]]],
        encoded: Iterator[tuple[np.ndarray, np.ndarray]],
    ) -> list[ZSequence]:
        """One sequence per text.

        Args:
            texts: sources.
            starts: character offset of each token of each text.
            cuts: the windows of each text.
            encoded: codes and span indices of all windows in order.
        """
        results = []
        for text, start, cut in zip(texts, starts, cuts, strict=True):
            parts = [next(encoded) for _ in cut]
            firsts = np.concatenate(
                [
                    start[a + np.flatnonzero(np.diff(spans, prepend=-1))]
                    for (a, _), (_, spans) in zip(cut, parts, strict=True)
                ]
            )
            firsts[0] = 0
            results.append(
                ZSequence(
                    codes=np.concatenate([codes for codes, _ in parts]),
                    spans=np.stack([firsts, np.append(firsts[1:], len(text))], axis=1),
                    windows=tuple(len(codes) for codes, _ in parts),
                    source_tokens=len(start),
                    fingerprint=self.fingerprint,
                )
            )
        return results

    def decompress(self, zs: Sequence[ZSequence], *, batch_size: int = 8) -> list[str]:
        """Write the texts that Z-tokens stand for, window by window, as the reader sees them.

        Raises:
            SequenceError: a sequence was made by another checkpoint.
        """
        return self.reader.decompress(zs, batch_size=batch_size)

    def anchor_text(self, z: ZSequence) -> str:
        """The source tokens that the Z-tokens name, in order: an extract that any LLM can read.

        Raises:
            SequenceError: the sequence was made by another checkpoint.
        """
        self.reader.check(z)
        anchors = z.codes[:, : self.model.config.anchors].ravel()
        ids = anchors[anchors != EMPTY].tolist()
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _cut(self, text: str, starts: np.ndarray) -> list[tuple[int, int]]:
        """Windows `[a, b)` of about equal size, cut before a word where one is near."""
        n = len(starts)
        count = math.ceil(n / self.model.config.window)
        edges = [0]
        for k in range(1, count):
            ideal = round(k * n / count)
            edge = ideal
            for candidate in range(ideal, max(edges[-1] + 1, ideal - 16), -1):
                at = int(starts[candidate])
                if text[at].isspace() or text[at - 1].isspace():
                    edge = candidate
                    break
            edges.append(edge)
        edges.append(n)
        return list(itertools.pairwise(edges))

    @torch.inference_mode()
    def _encode(
        self, windows: Sequence[list[int]], rates: Sequence[float], batch_tokens: int
    ) -> dict[float, list[tuple[np.ndarray, np.ndarray]]]:
        """Codes and span indices of each window, computed with windows of like length together."""
        results: dict[float, list[tuple[np.ndarray, np.ndarray]]] = {
            rate: [(np.empty(0), np.empty(0))] * len(windows) for rate in rates
        }
        for batch in batches_by_size([len(window) for window in windows], batch_tokens):
            made = self.model.encode_rates([windows[j] for j in batch], rates)
            for rate, out in zip(rates, made, strict=True):
                codes = out.codes.cpu().numpy().astype(np.uint16)
                split = np.split(codes, np.cumsum(out.counts)[:-1])
                for j, window_codes, spans in zip(batch, split, out.spans, strict=True):
                    results[rate][j] = (window_codes, spans)
        return results

    def _name(self, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Codes and span indices at rate 1, where Z-tokens are the tokens: no model is run."""
        base = self.model.base
        tokens = torch.tensor(ids, device=base.device)
        anchors = self.model.quantizer.anchor_codes(tokens, base.embeddings.weight)  # type: ignore[arg-type]
        codes = np.full((len(ids), self.depth), EMPTY, dtype=np.uint16)
        codes[:, 0] = anchors.cpu().numpy()
        return codes, np.arange(len(ids))


def batches_by_size(sizes: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices grouped by like size; a group's padded size is within `budget` where it can be."""
    batch: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        if batch and (len(batch) + 1) * sizes[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
