"""`ZCompressor`: texts to Z-tokens, and back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ztok_rag.codec.base import BaseLM
from ztok_rag.codec.model import ZModel
from ztok_rag.codec.nested import FINEST, RATES, NestedSequence
from ztok_rag.codec.reader import ZReader
from ztok_rag.codec.segment import IntArray
from ztok_rag.codec.sequence import EMPTY, ZSequence, spans_from
from ztok_rag.errors import ZtokError

MAX_RATE = 64.0


class _Window(NamedTuple):
    """The Z-tokens of one window.

    Attributes:
        codes: uint16 `[n_z, depth]`.
        owners: `[n]`, of each source token the Z-token whose span it is in.
        lasts: uint8 `[n_z]`, how many coarser rates each Z-token outlasts.
    """

    codes: NDArray[np.uint16]
    owners: IntArray
    lasts: NDArray[np.uint8]


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
        if not (math.isfinite(rate) and 1.0 <= rate <= MAX_RATE):
            raise ZtokError(f"the rate must be from 1 to {MAX_RATE:.0f}, not {rate}.")
        return self._compress(texts, rate, batch_tokens)[0]

    def compress_nested(
        self, texts: Sequence[str], *, batch_tokens: int = 4096
    ) -> list[NestedSequence]:
        """Compress texts once for all rates from 2 on; else as `compress`.

        At rate 2 the Z-tokens are those that `compress` makes. At a higher rate they are the part
        of them that stays when neighbours which carry little are merged.
        """
        sequences, lasts = self._compress(texts, FINEST, batch_tokens, RATES[1:])
        return [NestedSequence(z, own) for z, own in zip(sequences, lasts, strict=True)]

    def _compress(
        self, texts: Sequence[str], rate: float, batch_tokens: int, coarser: Sequence[float] = ()
    ) -> tuple[list[ZSequence], list[NDArray[np.uint8]]]:
        """Sequences of texts, and how many of the `coarser` rates each Z-token outlasts."""
        if isinstance(texts, str):
            raise ZtokError("compress takes a list of texts; put the text in a list.")
        for index, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ZtokError(f"text {index} has no words to compress; leave it out.")
        if not texts:
            return [], []
        encoding = self.tokenizer(
            list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids: list[list[int]] = encoding["input_ids"]
        starts = [np.array([a for a, _ in row]) for row in encoding["offset_mapping"]]
        cuts = [self._cut(text, start) for text, start in zip(texts, starts, strict=True)]
        windows = [ids[i][a:b] for i, cut in enumerate(cuts) for a, b in cut]
        if rate == 1:
            encoded = iter([self._name(window) for window in windows])
        else:
            encoded = iter(self._encode(windows, rate, batch_tokens, coarser))
        sequences, lasts = [], []
        for text, start, cut in zip(texts, starts, cuts, strict=True):
            parts = [next(encoded) for _ in cut]
            firsts = np.concatenate(
                [
                    start[a + np.flatnonzero(np.diff(part.owners, prepend=-1))]
                    for (a, _), part in zip(cut, parts, strict=True)
                ]
            )
            firsts[0] = 0
            sequences.append(
                ZSequence(
                    codes=np.concatenate([part.codes for part in parts]),
                    spans=spans_from(firsts, len(text)),
                    windows=tuple(len(part.codes) for part in parts),
                    source_tokens=len(start),
                    fingerprint=self.fingerprint,
                )
            )
            lasts.append(np.concatenate([part.lasts for part in parts]))
        return sequences, lasts

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
        self,
        windows: Sequence[list[int]],
        rate: float,
        batch_tokens: int,
        coarser: Sequence[float],
    ) -> list[_Window]:
        """The Z-tokens of each window, computed with windows of like length together."""
        results: dict[int, _Window] = {}
        for batch in batches_by_size([len(window) for window in windows], batch_tokens):
            own = [windows[j] for j in batch]
            out = self.model.encode(own, rate)
            codes = out.codes.cpu().numpy().astype(np.uint16)
            lasts = np.zeros(len(codes), dtype=np.uint8)
            if coarser:
                lasts = self.model.outlasted(own, out, coarser).astype(np.uint8)
            at = np.cumsum(out.counts)[:-1]
            parts = zip(np.split(codes, at), out.spans, np.split(lasts, at), strict=True)
            results |= {j: _Window(*part) for j, part in zip(batch, parts, strict=True)}
        return [results[j] for j in range(len(windows))]

    def _name(self, ids: list[int]) -> _Window:
        """A window at rate 1, where Z-tokens are the tokens: no model is run."""
        base = self.model.base
        tokens = torch.tensor(ids, device=base.device)
        anchors = self.model.quantizer.anchor_codes(tokens, base.embeddings.weight)  # type: ignore[arg-type]
        codes = np.full((len(ids), self.depth), EMPTY, dtype=np.uint16)
        codes[:, 0] = anchors.cpu().numpy()
        return _Window(codes, np.arange(len(ids)), np.zeros(len(ids), dtype=np.uint8))


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
