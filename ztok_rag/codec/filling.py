"""Tokens that a sequence left out, written by the base LLM between those that it holds."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from ztok_rag.codec.base import BaseLM, decode_exactly
from ztok_rag.codec.sequence import ZSequence


@torch.inference_mode()
def fill_gaps(base: BaseLM, z: ZSequence) -> str:
    """The text of a sequence; the plain base writes greedily what is missing.

    Args:
        base: whose tokens the sequence holds.
        z: the tokens that are held, and how many are missing between them.
    """
    ids = np.full(z.source_tokens, -1, np.int64)
    ids[z.places] = z.ids
    cache = DynamicCache(config=base.model.config)
    pending, written = [base.start_token], 0
    with base.adapter(None):
        for place in range(len(ids)):
            if ids[place] < 0:
                if written + len(pending) > base.max_positions:
                    cache, pending, written = _restart(base, ids[:place])
                tokens = torch.tensor([pending], device=base.device)
                hidden = base.decoder(
                    inputs_embeds=base.embed(tokens), past_key_values=cache, use_cache=True
                ).last_hidden_state
                logits = base.head(hidden[0, -1])
                logits[base.tokenizer.all_special_ids] = -torch.inf
                ids[place] = int(logits.argmax())
                written, pending = written + len(pending), []
            pending.append(int(ids[place]))
    return decode_exactly(base.tokenizer, ids)


def _restart(base: BaseLM, ids: NDArray[np.int64]) -> tuple[DynamicCache, list[int], int]:
    """An empty cache, and the last half of the base's context to read into it."""
    last = ids[-(base.max_positions // 2) :].tolist()
    return DynamicCache(config=base.model.config), [base.start_token, *last], 0
