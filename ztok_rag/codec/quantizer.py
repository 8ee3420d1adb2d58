"""Z-tokens as codes: from a span to its codes, and from codes alone to an input embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ

from ztok_rag.codec.config import ZConfig
from ztok_rag.codec.sequence import EMPTY


def normalize(hidden: Tensor) -> Tensor:
    """States `[..., hidden]` in fp32 at a root mean square of 1: `norm` in `ZQuantizer`."""
    return nn.functional.rms_norm(hidden.float(), hidden.shape[-1:], eps=1e-6)


class ZQuantizer(nn.Module):
    """Anchor codes plus residual codes.

    A Z-token's first `anchors` codes name source tokens in the base's own vocabulary: a codebook
    that is frozen, and that the base reads already. The reader's input is

        z = E[c_0] + sum_l T_l E[c_l]

    with `E` the base's embeddings, the span's weightiest token first, and one linear map `T_l`
    per further anchor. The last `residual_depth` codes quantize what the source around adds
    (finite scalar quantization, Mentzer et al. 2023, with a straight-through gradient). They
    speak to the reader's hidden states `h` where these enter chosen layers `j`:

        h <- h + s_j * (M_j norm(h) + D_j(residual codes))

    with `s_j` the usual size of the states there. Both maps start at zero. Trained, they bring
    the state that the anchor's token has among other Z-tokens nearer to the one that it has in
    the full text. At rate 1 there are no residual codes, and the Z-tokens are the raw text.
    """

    scale: Tensor

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
        layers = len(config.inject_layers)
        if config.residual_depth:
            levels = list(config.residual_levels)
            dims = len(levels) * config.residual_depth
            self.encoder = nn.Linear(2 * hidden_size, dims)
            self.residual: Any = FSQ(levels, dim=dims, num_codebooks=config.residual_depth)
            self.decoder = nn.Linear(dims, layers * hidden_size)
            self.mixes = nn.ModuleList(
                nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(layers)
            )
            for linear in (self.decoder, *self.mixes):
                nn.init.zeros_(linear.weight)
            nn.init.zeros_(self.decoder.bias)
        self.register_buffer("scale", torch.ones(layers, hidden_size))

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
        """Quantize features of spans.

        Args:
            features: `[n, 2 * hidden]`.

        Returns:
            The quantized vectors `[n, dims]` (straight-through) and their codes `[n, depth]`.
        """
        latent = self.encoder(features.float())
        quantized, codes = self.residual(latent.unsqueeze(0))
        return quantized.squeeze(0), codes.squeeze(0).long()

    def embed(
        self, anchors: Tensor, embeddings: nn.Module, quantized: Tensor | None, several: Tensor
    ) -> Tensor:
        """What the reader gets for Z-tokens.

        Args:
            anchors: int64 `[n, anchors]` codes, -1 where empty.
            embeddings: the base's embedding module.
            quantized: `[n, dims]` residual vectors, or `None` without residual codes.
            several: bool `[n]`: the Z-token has residual codes.

        Returns:
            `[n, (1 + inject_layers) * hidden]` in the base's dtype: the input embedding, then
            `D_j` of each layer, zero throughout where there are no residual codes.
        """
        vectors: Tensor = embeddings(anchors.clamp(min=0))
        z: Tensor = vectors[:, 0].float()
        for slot, linear in enumerate(self.maps, start=1):
            z = z + linear(vectors[:, slot].float()) * (anchors[:, slot : slot + 1] >= 0)
        layers = len(self.config.inject_layers)
        added = z.new_zeros(len(z), layers * z.shape[1])
        if quantized is not None:
            added = self.decoder(quantized) * several.unsqueeze(-1)
        return torch.cat([z, added], dim=1).to(vectors.dtype)

    def inject(self, layer: int, hidden: Tensor, added: Tensor) -> Tensor:
        """Hidden states with what residual codes add.

        Args:
            layer: position in `inject_layers`.
            hidden: `[..., hidden]` states that enter that layer.
            added: `[..., hidden]` `D_j`, zero where there are no residual codes.
        """
        mixed = self.mixes[layer](normalize(hidden)) * (added != 0).any(-1, keepdim=True)
        change: Tensor = self.scale[layer] * (mixed + added.float())
        return hidden + change.to(hidden.dtype)

    def embed_codes(self, codes: Tensor, embeddings: nn.Module) -> Tensor:
        """What the reader gets for stored codes, as `embed` returns it.

        Args:
            codes: int64 `[n, depth]` as in `ZSequence.codes`.
            embeddings: the base's embedding module.
        """
        anchors = codes[:, : self.config.anchors]
        anchors = anchors.masked_fill(anchors == EMPTY, -1)
        if not self.config.residual_depth:
            none = torch.zeros_like(anchors[:, 0], dtype=torch.bool)
            return self.embed(anchors, embeddings, None, none)
        several = codes[:, self.config.anchors] != EMPTY
        return self.embed(anchors, embeddings, self.residual_vectors(codes), several)

    def residual_vectors(self, codes: Tensor) -> Tensor:
        """The vectors that residual codes stand for, `[n, dims]`, zero where there are none.

        Args:
            codes: int64 `[n, depth]` as in `ZSequence.codes`.
        """
        residual = codes[:, self.config.anchors :]
        if not self.config.residual_depth:
            return residual.new_zeros(len(codes), 0, dtype=torch.float32)
        several = residual[:, :1] != EMPTY
        indices = residual.masked_fill(~several, 0).unsqueeze(0)
        vectors: Tensor = self.residual.indices_to_codes(indices).squeeze(0)
        return vectors * several
