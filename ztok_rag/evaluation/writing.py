"""How well texts are written in Z-space: nats per source token, entropy, and Z-tokens' lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ztok_rag.codec.compressor import ZCompressor, surprisal
from ztok_rag.codec.writing import WriteScore, ZGenerator
from ztok_rag.evaluation.datasets import WRITING
from ztok_rag.evaluation.intervals import bootstrap_ci
from ztok_rag.evaluation.rows import Row

Z_SPACE, TEXT_SPACE = "z-space", "text-space"
"""The arms: as the write head writes, and as the plain base does, token by token."""


@torch.inference_mode()
def base_nats(compressor: ZCompressor, ids: NDArray[np.int64], before: str = "") -> NDArray[Any]:
    """Surprisal `[n]` of tokens to the plain base, in nats.

    Args:
        compressor: whose base.
        ids: `[n]` the tokens.
        before: text before them.
    """
    base = compressor.model.base
    prompt = base.tokenizer(before, add_special_tokens=False)["input_ids"] if before else []
    read = torch.tensor([compressor.model.start_token, *prompt, *ids.tolist()], device=base.device)
    with base.adapter(None):
        hidden = base.decoder(
            inputs_embeds=base.embed(read[:-1]).unsqueeze(0), use_cache=False
        ).last_hidden_state[0]
    nats, _ = surprisal(hidden[len(prompt) :], read[len(prompt) + 1 :], base.head)
    return nats


def score_writing(
    compressor: ZCompressor, texts: Mapping[str, Sequence[str]], *, seed: int, progress: bool
) -> list[Row]:
    """Rows of all texts of each task.

    `nats_per_token` of both arms compare: they are code lengths of the same text. `entropy_slot_2`
    is that of what the second token of a Z-token is drawn from, in nats, and `z_tokens_of_2` the
    share of Z-tokens that hold two tokens, of 100.

    Args:
        compressor: of the checkpoint.
        texts: of each task, by its name.
        seed: of the intervals.
        progress: show a bar.

    Raises:
        CheckpointError: the checkpoint has no write head.
    """
    generator = ZGenerator(compressor.model)
    rows: list[Row] = []
    total = sum(map(len, texts.values()))
    with tqdm(total=total, desc="writing", unit="text", disable=not progress) as bar:
        for task, own in texts.items():
            scores, plain = [], []
            for text in own:
                scores.append(generator.score(text))
                ids = compressor.tokenize([text])[0].ids
                plain.append(float(base_nats(compressor, ids).mean()))
                bar.update()
            rows += _rows(task, scores, plain, seed)
    return rows


def _rows(task: str, scores: Sequence[WriteScore], plain: Sequence[float], seed: int) -> list[Row]:
    def row(arm: str, metric: str, values: Sequence[float]) -> Row:
        interval = bootstrap_ci(values, seed=seed)
        mean = float(np.mean(values))
        return Row(WRITING, task, arm, None, 0, metric, mean, interval, len(values))

    rows = [
        row(TEXT_SPACE, "nats_per_token", plain),
        row(Z_SPACE, "nats_per_token", [float(score.nats.mean()) for score in scores]),
        row(Z_SPACE, "tokens_per_z_token", [float(score.sizes.mean()) for score in scores]),
    ]
    slots = np.concatenate([score.slots for score in scores])
    entropy = np.concatenate([score.entropy for score in scores])
    sizes = np.concatenate([score.sizes for score in scores])
    for slot in range(int(slots.max()) + 1):
        rows.append(row(Z_SPACE, f"entropy_slot_{slot + 1}", entropy[slots == slot].tolist()))
    for size in range(1, int(sizes.max()) + 1):
        shares = (100.0 * (sizes == size)).tolist()
        rows.append(row(Z_SPACE, f"z_tokens_of_{size}", shares))
    return rows
