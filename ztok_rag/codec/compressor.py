"""`ZCompressor`: texts to Z-tokens, and back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ztok_rag.codec.base import BaseLM, Tokens, decode_exactly, tokenize_exactly
from ztok_rag.codec.compressed_text import CompressedText, edge_distance, levels_of
from ztok_rag.codec.model import ZModel
from ztok_rag.codec.reader import ZReader
from ztok_rag.codec.sequence import IntArray, ZSequence, text_digest
from ztok_rag.errors import ZtokError, check_rate
from ztok_rag.inputs import as_list, repair_surrogates

MAX_RATE = 64.0
MARGIN = 0.5
"""Logits by which the base prefers a token to all others, where it counts as predicted."""

# Nats. What a token gets changes by some 1e-5 in float32 with what is beside it in a batch.
_NOISE = 1e-4
_HEAD_TOKENS = 1024  # source tokens whose logits are held at once


class ZCompressor:
    """Compresses texts into discrete, variable-length `ZSequence`s.

    One forward pass of the base LLM weighs every token: how surprising it is, and whether the base
    predicts it. With these weights a text is cut into Z-tokens at any rate.
    """

    def __init__(self, model: ZModel) -> None:
        self.model = model
        self._reader = ZReader(model)

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
        """The reader on the same weights; the same one each time, so that its askers meet."""
        return self._reader

    @property
    def tokenizer(self) -> Any:
        """The base's Hugging Face tokenizer."""
        return self.model.base.tokenizer

    @property
    def fingerprint(self) -> str:
        """16 hex digits of what the codes mean; codes of another mean something else."""
        return self.model.fingerprint

    @property
    def slots(self) -> int:
        """Most tokens that a Z-token holds. Up to this rate a text comes back exactly."""
        return self.model.config.slots

    def count_tokens(self, text: str) -> int:
        """Tokens of the base LLM in a text."""
        (tokens,) = tokenize_exactly(self.tokenizer, [repair_surrogates(text, "a text")])
        return len(tokens.ids)

    def compress(
        self, texts: Sequence[str], rate: float = 4.0, *, batch_tokens: int | None = None
    ) -> list[ZSequence]:
        """Compress texts.

        Args:
            texts: any number, of any length. Half surrogate pairs are replaced by U+FFFD, with a
                warning.
            rate: source tokens per Z-token, 1 to 64.
            batch_tokens: padded source tokens per forward pass; `None` is what suits the device,
                and 1 reads each window of a text in a pass of its own.

        Raises:
            ZtokError: the rate is out of range, or a text is not a string or is empty.
        """
        check_rate(rate, MAX_RATE)
        if rate == 1:  # Z-tokens are the tokens: nothing need be weighed
            compressed = self.tokenize(texts)
        else:
            compressed = self.compress_all_rates(texts, batch_tokens=batch_tokens)
        return [text.at(rate, self.slots) for text in compressed]

    def compress_all_rates(
        self, texts: Sequence[str], *, batch_tokens: int | None = None
    ) -> list[CompressedText]:
        """Compress texts once for all rates; `at` of each gives what `compress` gives."""
        texts = self._checked(texts)
        tokens = tokenize_exactly(self.tokenizer, texts)
        return self._join(texts, tokens, self._weigh([t.ids for t in tokens], batch_tokens))

    def tokenize(self, texts: Sequence[str]) -> list[CompressedText]:
        """Texts as their tokens, unweighed: good for rate 1, and no model is run."""
        texts = self._checked(texts)
        tokens = tokenize_exactly(self.tokenizer, texts)
        return self._join(texts, tokens, [np.zeros(len(t.ids), np.uint8) for t in tokens])

    def decompress(self, zs: Sequence[ZSequence]) -> list[str]:
        """The texts of sequences.

        Where every token is held, up to a rate of `slots`, the codes are joined and no LLM runs.
        Above, the base LLM writes what was left out between the codes. A text that does not come
        back as it was, by its digest, is told of by a warning.
        """
        zs = as_list(zs, "sequences to decompress")
        texts = [self._join_codes(z) if z.holds_all else self.reader.fill(z) for z in zs]
        for number, (z, text) in enumerate(zip(zs, texts, strict=True)):
            if z.digest and z.digest != text_digest(text):
                why = (
                    "this base's tokenizer changes such text"
                    if z.holds_all
                    else f"at rate {z.rate:.1f} tokens were left out"
                )
                warnings.warn(
                    f"text {number} did not come back exactly: {why}.", UserWarning, stacklevel=2
                )
        return texts

    def is_exact(self, z: ZSequence, text: str) -> bool:
        """Whether `text` is what was compressed, by the digest made then."""
        return bool(z.digest) and z.digest == text_digest(text)

    def held_text(self, z: ZSequence) -> str:
        """The tokens that a sequence holds as text, with an ellipsis where some are left out."""
        runs = [decode_exactly(self.tokenizer, z.ids[run]) for run in z.runs]
        return " … ".join(run.strip() for run in runs)

    def _join_codes(self, z: ZSequence) -> str:
        self.reader.check(z)
        return decode_exactly(self.tokenizer, z.ids)

    def _checked(self, texts: Sequence[str]) -> list[str]:
        """The texts without half surrogate pairs."""
        checked = []
        for index, text in enumerate(as_list(texts, "texts to compress")):
            if not isinstance(text, str) or not text:
                raise ZtokError(f"text {index} is empty; leave it out.")
            checked.append(repair_surrogates(text, f"text {index}"))
        return checked

    def _join(
        self, texts: Sequence[str], tokens: Sequence[Tokens], levels: Sequence[NDArray[np.uint8]]
    ) -> list[CompressedText]:
        return [
            CompressedText(
                ids=own.ids,
                levels=level,
                starts=own.starts,
                characters=len(text),
                fingerprint=self.fingerprint,
                digest=text_digest(text),
                code=self.model.token_code,
            )
            for text, own, level in zip(texts, tokens, levels, strict=True)
        ]

    def _weigh(self, rows: Sequence[IntArray], batch_tokens: int | None) -> list[NDArray[np.uint8]]:
        """Levels of the tokens of texts (`levels_of`), in one pass of the plain base."""
        window = self.model.config.window
        cuts = [range(0, len(row), window) for row in rows]
        windows = [row[a : a + window] for row, own in zip(rows, cuts, strict=True) for a in own]
        if reads_alone(self.model.base):
            batch_tokens = 1
        elif batch_tokens is None:
            batch_tokens = best_batch_tokens(self.model.base.device)
        levels: dict[int, NDArray[np.uint8]] = {}
        for batch in batches_by_size([len(w) + 1 for w in windows], batch_tokens):
            found, sure = self._weigh_batch([windows[i] for i in batch])
            if len(batch) > 1 and self.model.base.dtype == torch.float32:
                for at in np.flatnonzero(~sure):
                    (found[at],), _ = self._weigh_batch([windows[batch[at]]])
            levels |= dict(zip(batch, found, strict=True))
        ordered = iter(range(len(windows)))
        return [np.concatenate([levels[next(ordered)] for _ in own]) for own in cuts]

    @torch.inference_mode()
    def _weigh_batch(
        self, windows: Sequence[IntArray]
    ) -> tuple[list[NDArray[np.uint8]], NDArray[np.bool_]]:
        """Levels of windows, and of each window whether another batch would surely give the same.

        It would in float32 where no token is within `_NOISE` of a level's edge. In bf16 rounding is
        so much larger that hardly a window would be sure (`reads_alone`).
        """
        base = self.model.base
        longest = max(map(len, windows))
        ids = torch.full((len(windows), longest + 1), self.model.start_token)
        mask = torch.zeros(len(windows), longest + 1, dtype=torch.long)
        for row, own in enumerate(windows):
            ids[row, 1 : len(own) + 1] = torch.from_numpy(own)
            mask[row, : len(own) + 1] = 1
        ids, mask = ids.to(base.device), mask.to(base.device)
        with base.adapter(None):
            hidden = base.decoder(
                inputs_embeds=base.embed(ids), attention_mask=mask, use_cache=False
            ).last_hidden_state
        real = mask[:, 1:].bool()
        states, wanted = hidden[:, :-1][real], ids[:, 1:][real]
        nats, lead = score(states, wanted, base.head)
        near = np.abs(lead - MARGIN) < _NOISE
        near |= (lead < MARGIN) & (edge_distance(nats) < _NOISE)
        at = np.cumsum([len(w) for w in windows])[:-1]
        sure = np.array([not own.any() for own in np.split(near, at)])
        return np.split(levels_of(nats, lead >= MARGIN), at), sure


def surprisal(
    states: Tensor, wanted: Tensor, head: nn.Module
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """What an LLM's last states say of the tokens that follow.

    Args:
        states: `[n, hidden]` after the final norm.
        wanted: `[n]` the token that follows each.
        head: the LLM's output embedding.

    Returns:
        Surprisal of each token in nats, and whether the LLM prefers it to all others by `MARGIN`.
    """
    nats, lead = score(states, wanted, head)
    return nats, lead >= MARGIN


@torch.inference_mode()
def score(
    states: Tensor, wanted: Tensor, head: nn.Module
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Surprisal of tokens in nats, and by how much their logits lead all others.

    Arguments are those of `surprisal`.
    """
    nats, lead = [], []
    for at in range(0, len(states), _HEAD_TOKENS):
        logits = head(states[at : at + _HEAD_TOKENS]).float()
        own = wanted[at : at + _HEAD_TOKENS]
        chosen = logits.gather(1, own.unsqueeze(1)).squeeze(1)
        nats.append((logits.logsumexp(-1) - chosen).cpu())
        others = logits.scatter_(1, own.unsqueeze(1), -torch.inf).amax(-1)
        lead.append((chosen - others).cpu())
    return torch.cat(nats).double().numpy(), torch.cat(lead).double().numpy()


def reads_alone(base: BaseLM) -> bool:
    """Whether a base reads each window in a pass of its own, whatever `batch_tokens` is.

    It does in bf16 on a CPU, where one thread takes no longer for it. What a text is compressed to
    then depends on the text alone, as in float32. On a GPU, `batch_tokens=1` does the same, at a
    cost in time.
    """
    return base.dtype != torch.float32 and base.device.type == "cpu"


def best_batch_tokens(device: torch.device) -> int:
    """Padded tokens per pass at which a device weighs texts soonest.

    Larger batches hold more padding where lengths differ, and a CPU gains nothing by them.
    """
    return 1024 if device.type == "cpu" else 4096


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
