"""Models that differ from the shipped one in a single respect, for `ablations.py`."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn

from ztok_rag.codec.base import BaseLM
from ztok_rag.codec.config import ZConfig
from ztok_rag.codec.model import Encoded, Foci, ZModel
from ztok_rag.codec.quantizer import ZQuantizer
from ztok_rag.codec.segment import FloatArray, IntArray, select_anchors


class UniformModel(ZModel):
    """All spans of a window are of one length; anchors are chosen by surprisal."""

    def _allocate(
        self, nats: FloatArray, weights: FloatArray, rate: float
    ) -> tuple[IntArray, IntArray]:
        n = len(nats)
        spans = np.arange(n) * max(1, round(n / rate)) // n
        return spans, select_anchors(nats, spans, self.config.anchors)


class SurprisalModel(ZModel):
    """Spans share out the gate's estimate of surprisal, whatever questions may ask."""

    def _weigh(
        self, windows: list[list[int]], information: Tensor, uses: Tensor
    ) -> tuple[FloatArray, FloatArray]:
        nats, _ = super()._weigh(windows, information, uses)
        return nats, nats


class _ContinuousQuantizer(ZQuantizer):
    """Residual vectors in the place of residual codes, of as many dimensions."""

    def encode_residual(self, features: Tensor) -> tuple[Tensor, Tensor]:
        latent = self.encoder(features.float()).tanh()
        codes = latent.new_zeros(len(latent), self.config.residual_depth, dtype=torch.long)
        return latent, codes


class ContinuousModel(ZModel):
    """Z-tokens whose residual is not quantized."""

    def __init__(self, base: BaseLM, config: ZConfig) -> None:
        super().__init__(base, config)
        self.quantizer = _ContinuousQuantizer(config, base.hidden_size).to(base.device)


class MeanPoolModel(ContinuousModel):
    """The mean of a span's token embeddings in the place of its anchor's; not quantized."""

    def encode(self, windows: list[list[int]], rate: float, focus: Foci = None) -> Encoded:
        encoded = super().encode(windows, rate, focus)
        device = self.base.device
        ids = torch.tensor([token for window in windows for token in window], device=device)
        starts = np.cumsum([0, *encoded.counts[:-1]])
        owners = [spans + start for spans, start in zip(encoded.spans, starts, strict=True)]
        owner = torch.from_numpy(np.concatenate(owners)).to(device)
        n_z, size = sum(encoded.counts), self.base.hidden_size
        total = torch.zeros(n_z, size, device=device)
        total = total.index_add(0, owner, self.base.embed(ids).float())
        mean = total / torch.bincount(owner, minlength=n_z).unsqueeze(-1)
        rest = encoded.embeddings[:, size:]
        embeddings = torch.cat([mean.to(rest.dtype), rest], dim=1)
        return dataclasses.replace(encoded, embeddings=embeddings)


class MemoryTokenModel(ZModel):
    """Continuous memory tokens after the text, whose states are read (ICAE, arXiv 2307.06945)."""

    def __init__(self, base: BaseLM, config: ZConfig) -> None:
        super().__init__(base, config)
        width = base.hidden_size
        typical = base.embeddings.weight.detach().float().mean(0)
        noise = 0.02 * torch.randn(config.window, width)
        self.memory = nn.Parameter(typical.cpu() + noise)
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, width)
        nn.init.normal_(self.project.weight, std=0.1 * width**-0.5)
        self.to(base.device)

    def encode(self, windows: list[list[int]], rate: float, focus: Foci = None) -> Encoded:
        if any(focus or ()):
            raise NotImplementedError("memory tokens stand for a whole window")
        device = self.base.device
        counts = [max(1, round(len(window) / rate)) for window in windows]
        rows, is_memory = [], []
        for window, count in zip(windows, counts, strict=True):
            text = self.base.embed(torch.tensor(window, device=device))
            # Evenly spaced, so that a memory token's number says where in the text it belongs.
            chosen = torch.arange(count, device=device) * self.config.window // count
            rows.append(torch.cat([text, self.memory[chosen].to(text.dtype)]))
            is_memory.append(torch.arange(len(rows[-1]), device=device) >= len(text))
        pad = nn.utils.rnn.pad_sequence
        mask = pad([torch.ones(len(row), device=device) for row in rows], batch_first=True)
        with self.base.adapter("compress"):
            hidden = self._short_decoder(  # type: ignore[operator]
                inputs_embeds=pad(rows, batch_first=True),
                attention_mask=mask.long(),
                use_cache=False,
            ).last_hidden_state
        states = hidden[pad(is_memory, batch_first=True)].float()
        embeddings = self.project(self.norm(states)).to(self.base.dtype)
        tokens = sum(map(len, windows))
        spans = [np.zeros(len(window), dtype=np.int64) for window in windows]
        no_codes = torch.zeros(sum(counts), 0, dtype=torch.long, device=device)
        ones = states.new_ones(tokens)
        return Encoded(embeddings, no_codes, counts, spans, ones, states.new_zeros(tokens, 2))
