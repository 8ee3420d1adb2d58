"""Reading back what is written, token by token or as Z-tokens, with a KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ztok_rag.codec.model import ZModel
from ztok_rag.errors import ZtokError

ReadAs = Literal["text", "both", "z"]
"""How what was written is read back: token by token; the last Z-token so and those before it as
Z-tokens; or all as Z-tokens."""

READ_AS: tuple[ReadAs, ...] = ("text", "both", "z")


class Reading:
    """A prompt and the Z-tokens written after it, as the LLM reads them one by one."""

    def __init__(self, model: ZModel, prompt: Tensor, adapter: str | None, read_as: ReadAs) -> None:
        """Set up; nothing is read yet.

        Args:
            model: the LLM.
            prompt: `[n, hidden]` input embeddings.
            adapter: of the LLM.
            read_as: how Z-tokens are read.

        Raises:
            ZtokError: the base cannot take back what it has read, and `read_as` needs it.
        """
        self._model = model
        self._prompt = prompt
        self._adapter = adapter
        self._read_as = read_as
        self._cache = DynamicCache(config=self._model.base.model.config)
        self._last: list[int] = []  # the Z-token that was read token by token for now
        if read_as == "both" and not all(type(x) is DynamicLayer for x in self._cache.layers):
            raise ZtokError(
                "this base keeps a window of what it has read; give read_as='text' or 'z'."
            )

    @torch.inference_mode()
    def read(self, codes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Read one more Z-token; the first call, without codes, reads the prompt.

        Returns:
            The last state `[hidden]` and the scores `[vocabulary]` of the next token.
        """
        model = self._model
        inputs = self._inputs(codes) if codes else self._prompt
        with model.base.adapter(self._adapter), model.base.captured_states() as states:
            logits = model.base.model(
                inputs_embeds=inputs.unsqueeze(0),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
        return states[0][0, -1], logits[0, -1].float()

    def _inputs(self, codes: Sequence[int]) -> Tensor:
        """Embeddings of the new Z-token; what was read for now is taken back."""
        base = self._model.base
        tokens = torch.tensor([*codes], device=base.device)
        if self._read_as == "text":
            return base.embed(tokens)
        if self._read_as == "z":
            return self._packed(codes)
        parts = [base.embed(tokens)]
        if self._last:
            self._cache.crop(-len(self._last))
            parts.insert(0, self._packed(self._last))
        self._last = [*codes]
        return torch.cat(parts)

    def _packed(self, codes: Sequence[int]) -> Tensor:
        row = torch.full((1, self._model.config.slots), -1, device=self._model.base.device)
        row[0, : len(codes)] = torch.tensor([*codes])
        return self._model.embed_codes(row)
