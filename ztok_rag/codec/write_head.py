"""The write head: from one state of the LLM to several tokens, one after the other.

A recurrent drafter (Zhang et al. 2024, arXiv 2403.09919). Medusa (arXiv 2401.10774) and multi-token
prediction (arXiv 2404.19737) guess each further token apart from the others; here each is
conditioned on those before it, as in Hydra (arXiv 2402.05109) and EAGLE (arXiv 2401.15077). EAGLE
runs a transformer layer over all earlier states; this head sees the last one only, and so needs no
cache. The first token is the LLM's own. Scores come from the LLM's output embeddings of its
commonest tokens (FR-Spec, arXiv 2502.14856); one more says that the next token is none of these.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ztok_rag.errors import CheckpointError

WRITE_FILE = "write.safetensors"
"""Its file in a checkpoint's folder; a checkpoint may lack it."""

BINS = 20
"""Steps of confidence for which it is known how often the LLM agrees."""


class WriteHead(nn.Module):
    """A recurrent network of one layer, over the LLM's embeddings and output embeddings.

    Attributes:
        vocabulary: int64 `[v]` rising ids of the tokens that it can write.
        agreement: `[BINS]` how often the LLM writes the head's likeliest token, too, by the
            probability that the head gives to it; rising.
    """

    vocabulary: Tensor
    agreement: Tensor

    def __init__(
        self, hidden: int, vocabulary: Tensor, width: int = 448, dropout: float = 0.0
    ) -> None:
        """Set up untrained weights.

        Args:
            hidden: size of the LLM's states and embeddings.
            vocabulary: ids of the tokens that it can write.
            width: of its memory.
            dropout: in training, share of what it reads and of its memory that is left out.
        """
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.opening = nn.Linear(hidden, width)
        self.cell = nn.GRUCell(hidden, width)
        self.outward = nn.Linear(width, hidden)
        self.ending = nn.Linear(width, 1)
        self.register_buffer("vocabulary", vocabulary.long().sort().values)
        self.register_buffer("agreement", (torch.arange(BINS) + 0.5) / BINS)

    def open(self, states: Tensor) -> Tensor:
        """Memory `[n, width]` from the LLM's last states `[n, hidden]`, after its final norm."""
        states = states.to(self.opening.weight.dtype)
        normed = nn.functional.rms_norm(states, states.shape[-1:], eps=1e-5)
        return torch.tanh(self.opening(self.dropout(normed)))

    def step(self, memory: Tensor, embedded: Tensor) -> Tensor:
        """Memory after one more token.

        Args:
            memory: `[n, width]` before it.
            embedded: `[n, hidden]` its input embedding, divided by their standard deviation.
        """
        new: Tensor = self.cell(self.dropout(embedded.to(memory.dtype)), memory)
        return new

    def forward(self, memory: Tensor, rows: Tensor) -> Tensor:
        """Log probabilities `[n, v + 1]` of the next token, the last of "none of these".

        Args:
            memory: `[n, width]`.
            rows: `[v, hidden]` the LLM's output embeddings of `vocabulary`.
        """
        memory = self.dropout(memory)
        scores = self.outward(memory) @ rows.T
        logits = torch.cat([scores, self.ending(memory)], dim=-1)
        return logits.float().log_softmax(-1)

    def chance(self, confidence: Tensor) -> Tensor:
        """How likely the LLM's own token is the head's likeliest, by the probability of that."""
        place = confidence.float().clamp(0, 1) * BINS - 0.5
        low = place.floor().clamp(0, BINS - 2).long()
        table = self.agreement.to(confidence.device).float()
        between = (place - low).clamp(0, 1)
        return torch.lerp(table[low], table[low + 1], between)

    def save(self, folder: Path) -> None:
        """Write `write.safetensors`: weights in bf16."""
        tensors = {
            name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
            if name != "vocabulary"
            else tensor.to("cpu", torch.int32)
            for name, tensor in self.state_dict().items()
        }
        save_file(tensors, folder / WRITE_FILE)

    @classmethod
    def load(cls, folder: Path, hidden: int, vocabulary: int) -> WriteHead:
        """Read what `save` wrote.

        Args:
            folder: of the checkpoint.
            hidden: size of the base's states.
            vocabulary: tokens of the base.

        Raises:
            CheckpointError: the file is damaged, or of another base.
        """
        path = folder / WRITE_FILE
        try:
            with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            ids = tensors["vocabulary"].long()
            head = cls(hidden, ids, width=len(tensors["opening.bias"]))
            head.load_state_dict(
                {
                    name: tensor.to(ids.dtype if name == "vocabulary" else torch.float32)
                    for name, tensor in tensors.items()
                }
            )
            if not len(ids) or int(ids.min()) < 0 or int(ids.max()) >= vocabulary:
                raise ValueError("it writes tokens that the base does not have")
        except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{path} is damaged or of another base ({error}); install the checkpoint again, "
                "or train a head with `ztok train --write`."
            ) from error
        return head.requires_grad_(False).eval()
