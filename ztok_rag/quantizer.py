"""Z-tokens as codes: from a span to its codes, and from codes alone to an input embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import ResidualFSQ

from ztok_rag.config import ZConfig
from ztok_rag.sequence import EMPTY


class ZQuantizer(nn.Module):
    """Anchor codes plus residual codes.

    A Z-token's first `anchors` codes name source tokens in the base's own vocabulary: a codebook
    that is frozen, and that the base reads already. Its last `residual_depth` codes quantize
    what the contextual hidden states of the span add (residual finite scalar quantization,
    Mentzer et al. 2023, with a straight-through gradient). The embedding is a sum:

        z = E[c_0] + sum_l T_l E[c_l] + D(residual codes)

    with `E` the base's embeddings, the span's most informative token first, one linear map
    `T_l` per further anchor, and a decoder `D` that starts at zero. A span of one token has no
    residual and is exactly that token's embedding, so at rate 1 the Z-tokens are the raw text.
    """

    def __init__(self, config: ZConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        self.maps = nn.ModuleList(
            nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(config.anchors - 1)
        )
        for slot, linear in enumerate(self.maps, start=1):
            # The first anchor stays what the base reads; the others are faint beside it.
            rotation = nn.init.orthogonal_(torch.empty(hidden_size, hidden_size))
            identity = torch.eye(hidden_size)
            linear.weight = nn.Parameter((0.3 * identity + 0.1 * rotation) / slot)
        if config.residual_depth:
            width, levels = config.residual_width, list(config.residual_levels)
            self.encoder = nn.Sequential(
                nn.LayerNorm(2 * hidden_size),
                nn.Linear(2 * hidden_size, width),
                nn.SiLU(),
                nn.Linear(width, len(levels)),
            )
            self.residual: Any = ResidualFSQ(
                dim=len(levels), levels=levels, num_quantizers=config.residual_depth
            )
            self.decoder = nn.Sequential(
                nn.Linear(len(levels), width), nn.SiLU(), nn.Linear(width, hidden_size)
            )
            nn.init.zeros_(self.decoder[-1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.decoder[-1].bias)  # type: ignore[arg-type]

    def anchor_codes(self, ids: Tensor, embeddings: Tensor) -> Tensor:
        """The anchor code of each token id: the id, or its nearest id that fits 16 bits.

        Args:
            ids: int64 `[...]` token ids; -1 stays -1.
            embeddings: `[vocabulary, hidden]` of the base.
        """
        large = ids >= EMPTY
        if large.any():
            rare = nn.functional.normalize(embeddings[ids[large]].float(), dim=-1)
            table = nn.functional.normalize(embeddings[:EMPTY].float(), dim=-1)
            ids = ids.masked_scatter(large, (rare @ table.T).argmax(dim=-1))
        return ids

    def encode_residual(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize span features.

        Args:
            features: `[n, 2 * hidden]`.

        Returns:
            The quantized vector `[n, dims]` (straight-through) and its codes `[n, depth]`.
        """
        latent = self.encoder(features.float())
        quantized, codes = self.residual(latent.unsqueeze(0))
        return quantized.squeeze(0), codes.squeeze(0)

    def embed(
        self,
        anchors: Tensor,
        embeddings: nn.Module,
        quantized: Tensor | None,
        several: Tensor,
    ) -> Tensor:
        """Input embeddings of Z-tokens.

        Args:
            anchors: int64 `[n, anchors]` codes, -1 where empty.
            embeddings: the base's embedding module.
            quantized: `[n, dims]` residual vector, or `None` without residual codes.
            several: bool `[n]`: the span has more than one token.

        Returns:
            `[n, hidden]` in the base's dtype.
        """
        vectors: Tensor = embeddings(anchors.clamp(min=0))
        z: Tensor = vectors[:, 0].float()
        for slot, linear in enumerate(self.maps, start=1):
            z = z + linear(vectors[:, slot].float()) * (anchors[:, slot : slot + 1] >= 0)
        if quantized is not None:
            z = z + self.decoder(quantized) * several.unsqueeze(-1)
        return z.to(vectors.dtype)

    def embed_codes(self, codes: Tensor, embeddings: nn.Module) -> Tensor:
        """Input embeddings from stored codes.

        Args:
            codes: int64 `[n, depth]` as in `ZSequence.codes`.
            embeddings: the base's embedding module.
        """
        anchors = codes[:, : self.config.anchors]
        anchors = anchors.masked_fill(anchors == EMPTY, -1)
        quantized, several = None, torch.ones_like(anchors[:, 0], dtype=torch.bool)
        if self.config.residual_depth:
            residual = codes[:, self.config.anchors :]
            several = residual[:, 0] != EMPTY
            indices = residual.masked_fill(~several.unsqueeze(-1), 0).unsqueeze(0)
            quantized = self.residual.get_output_from_indices(indices).squeeze(0)
        return self.embed(anchors, embeddings, quantized, several)
