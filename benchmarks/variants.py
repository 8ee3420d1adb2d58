"""Models that differ from the shipped one in a single respect, for `ablations.py`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ztok_rag.base import BaseLM
from ztok_rag.config import ZConfig
from ztok_rag.model import Encoded, ZModel
from ztok_rag.segment import FloatArray, IntArray, select_anchors


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


class BothModel(ZModel):
    """Spans share out surprisal times how likely tokens are to be asked for."""

    def _weigh(
        self, windows: list[list[int]], information: Tensor, uses: Tensor
    ) -> tuple[FloatArray, FloatArray]:
        nats, weights = super()._weigh(windows, information, uses)
        return nats, nats * weights


class _Projected(ZModel):
    """Adds a projection of span states, which starts at zero, to a span's embedding."""

    def __init__(self, base: BaseLM, config: ZConfig) -> None:
        super().__init__(base, config)
        width = self.base.hidden_size
        self.norm = nn.LayerNorm(2 * width, device=base.device)
        self.project = nn.Linear(2 * width, width, device=base.device)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)


class ContinuousModel(_Projected):
    """Anchors, and a residual vector that is not quantized."""

    def _embed_spans(
        self, anchors: Tensor, hidden: Tensor, scores: Tensor, owner: Tensor
    ) -> tuple[Tensor, Tensor]:
        features = self.norm(self._pool(hidden, scores, owner, len(anchors)))
        discrete = self.quantizer.embed(anchors, self.base.embeddings, None, anchors[:, 0] >= 0)
        return discrete + self.project(features).to(discrete.dtype), anchors


class MeanPoolModel(_Projected):
    """The mean of a span's token embeddings, and a residual vector that is not quantized."""

    def encode(self, windows: list[list[int]], rate: float) -> Encoded:
        ids = torch.tensor([token for window in windows for token in window])
        self._embedded = self.base.embed(ids.to(self.base.device)).float()
        return super().encode(windows, rate)

    def _embed_spans(
        self, anchors: Tensor, hidden: Tensor, scores: Tensor, owner: Tensor
    ) -> tuple[Tensor, Tensor]:
        n_z = len(anchors)
        features = self.norm(self._pool(hidden, scores, owner, n_z))
        total = self._embedded.new_zeros(n_z, self.base.hidden_size)
        total = total.index_add(0, owner, self._embedded)
        size = torch.bincount(owner, minlength=n_z).unsqueeze(-1)
        return (total / size + self.project(features)).to(self.base.dtype), anchors


class MemoryTokenModel(ZModel):
    """Continuous memory tokens after the text, whose states are read (ICAE, Ge et al. 2023)."""

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

    def encode(self, windows: list[list[int]], rate: float) -> Encoded:
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


class ComposedModel(ZModel):
    """A network, whose output starts at zero, over all anchors of a Z-token."""

    def __init__(self, base: BaseLM, config: ZConfig) -> None:
        super().__init__(base, config)
        width = base.hidden_size
        self.compose = nn.Sequential(
            nn.Linear(config.anchors * width, 1024), nn.SiLU(), nn.Linear(1024, width)
        ).to(base.device)
        nn.init.zeros_(self.compose[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.compose[-1].bias)  # type: ignore[arg-type]

    def _embed_spans(
        self, anchors: Tensor, hidden: Tensor, scores: Tensor, owner: Tensor
    ) -> tuple[Tensor, Tensor]:
        embeddings, codes = super()._embed_spans(anchors, hidden, scores, owner)
        vectors = self.base.embed(anchors.clamp(min=0)).float() * (anchors >= 0).unsqueeze(-1)
        several = anchors[:, 1:2] >= 0
        added = self.compose(5 * vectors.flatten(1)) * several
        return embeddings + added.to(embeddings.dtype), codes
