"""The packer: one input embedding from the codes of one Z-token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EMPTY = -1
"""Code of a slot that no token fills."""

EMBEDDING_SCALE = 0.12
"""Standard deviation of the default base's input embeddings; what the MLP reads is divided by it
and what it writes is multiplied by it."""


class Packer(nn.Module):
    """Mean of the embeddings of a Z-token's tokens, plus an MLP over its slots.

    A Z-token that holds one token is that token's embedding, so text at rate 1 is raw text. The
    last layer starts at zero: untrained, a Z-token is the mean of its tokens.
    """

    def __init__(self, hidden: int, slots: int, width: int, scale: float = EMBEDDING_SCALE) -> None:
        """Set up untrained weights.

        Args:
            hidden: size of the base's input embeddings.
            slots: most tokens that a Z-token holds.
            width: of the MLP.
            scale: standard deviation of the base's input embeddings.
        """
        super().__init__()
        self.slots = slots
        self.scale = scale
        self.inward = nn.Linear(slots * hidden, width)
        self.outward = nn.Linear(width, hidden)
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)

    def forward(self, codes: Tensor, table: Tensor) -> Tensor:
        """Input embeddings `[n_z, hidden]` of Z-tokens, in the dtype of `table`.

        Args:
            codes: int64 `[n_z, slots]` token ids; `EMPTY` where a slot is free. The filled slots
                come first.
            table: `[vocabulary, hidden]` the base's input embeddings.
        """
        first = nn.functional.embedding(codes[:, 0], table)
        several = (codes[:, 1] >= 0).nonzero()[:, 0] if codes.shape[1] > 1 else codes.new_zeros(0)
        if not len(several):
            return first
        some = codes[several]
        filled = some >= 0
        each = nn.functional.embedding(some.clamp(min=0), table) * filled.unsqueeze(-1)
        mean = each.float().sum(1) / filled.sum(1, keepdim=True)
        dtype = self.inward.weight.dtype
        change = self.outward(
            nn.functional.gelu(self.inward((each.to(dtype) / self.scale).flatten(1)))
        )
        packed = mean + change.float() * self.scale
        return first.index_copy(0, several, packed.to(first.dtype))


class Pointer(nn.Module):
    """Which Z-token the reader's next token stands in.

    A bilinear score between the reader's state at the position that predicts the token and its
    states at the Z-tokens, after `layer` of its layers (a pointer network, Vinyals et al. 2015,
    arXiv 1506.03134).
    """

    def __init__(self, hidden: int, width: int = 128) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, width, bias=False)
        self.key = nn.Linear(hidden, width, bias=False)

    def forward(self, asking: Tensor, states: Tensor) -> Tensor:
        """Logits `[..., n]`.

        Args:
            asking: `[..., hidden]` states at the positions that predict.
            states: `[..., n, hidden]` states at the Z-tokens.
        """
        hidden = states.shape[-1]
        dtype = self.query.weight.dtype
        norm = nn.functional.rms_norm
        query = self.query(norm(asking.to(dtype), (hidden,), eps=1e-5))
        keys = self.key(norm(states.to(dtype), (hidden,), eps=1e-5))
        scores = torch.einsum("...nd,...d->...n", keys, query)
        logits: Tensor = scores.float() / self.query.out_features**0.5
        return logits
