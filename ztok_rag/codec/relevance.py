"""The network of a checkpoint that finds where an answer may stand, by codes and a question.

`ztok_rag.selection.relevance` makes its inputs and uses what it says.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 96
HINTS = 5
"""Numbers about a token that enter beside its embedding; `question_hints` computes them."""

_KERNEL = 5
_DILATIONS = (1, 2, 4)


class RelevanceModel(nn.Module):
    """Scores a text's tokens by how likely each is to be part of the answer to a question.

    Each token of the text attends to the question's (Seo et al. 2017) and, by dilated
    convolutions, to its neighbours. It enters as the base's input embedding, so nothing but codes
    is read and no LLM is run. The last layer starts at zero: untrained, all tokens score alike.
    """

    def __init__(self, hidden_size: int, dropout: float = 0.1) -> None:
        """Set up untrained weights.

        Args:
            hidden_size: of the base.
            dropout: in training.
        """
        super().__init__()
        self.word = nn.Linear(hidden_size, WIDTH)
        self.context = nn.Conv1d(WIDTH, WIDTH, _KERNEL, padding=_KERNEL // 2)
        self.context_norm = nn.LayerNorm(WIDTH)
        self.similarity = nn.Parameter(0.05 * torch.randn(3, WIDTH))
        self.fuse = nn.Linear(3 * WIDTH + HINTS, WIDTH)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(WIDTH, WIDTH, _KERNEL, padding=_KERNEL // 2 * step, dilation=step)
            for step in _DILATIONS
        )
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in _DILATIONS)
        self.score = nn.Linear(WIDTH, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)
        self.dropout = nn.Dropout(dropout)

    def encode(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens of texts or questions among their neighbours, `[rows, n, WIDTH]`.

        Args:
            tokens: `[rows, n, hidden]` normalized embeddings.
            mask: bool `[rows, n]`, false at padding, which becomes zero.
        """
        states = self.dropout(self.word(tokens)) * mask.unsqueeze(-1)
        near = nn.functional.gelu(self.context(states.transpose(1, 2))).transpose(1, 2)
        normed: Tensor = self.context_norm(states + near)
        return normed * mask.unsqueeze(-1)

    def forward(
        self,
        text: Tensor,
        hints: Tensor,
        text_mask: Tensor,
        question: Tensor,
        question_mask: Tensor,
    ) -> Tensor:
        """Logits `[pairs, n]` of the tokens of texts, each for one question; -1e4 at padding.

        Args:
            text: `[pairs, n, WIDTH]` the texts' tokens, encoded.
            hints: `[pairs, n, HINTS]`, see `ztok_rag.selection.relevance.question_hints`.
            text_mask: bool `[pairs, n]`, false at padding.
            question: `[pairs, m, WIDTH]` the questions' tokens, encoded.
            question_mask: bool `[pairs, m]`.
        """
        by_text, by_question, by_both = self.similarity
        likeness = (
            (text @ by_text).unsqueeze(2)
            + (question @ by_question).unsqueeze(1)
            + (text * by_both) @ question.transpose(1, 2)
        )
        likeness = likeness.masked_fill(~question_mask.unsqueeze(1), -1e4)
        attended = likeness.softmax(-1) @ question
        joined = torch.cat([text, attended, text * attended, hints], dim=-1)
        state = nn.functional.gelu(self.fuse(self.dropout(joined)))
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            state = state * text_mask.unsqueeze(-1)
            change = nn.functional.gelu(convolution(state.transpose(1, 2))).transpose(1, 2)
            state = norm(state + self.dropout(change))
        logits: Tensor = self.score(state).squeeze(-1)
        return logits.masked_fill(~text_mask, -1e4)
