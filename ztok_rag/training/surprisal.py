"""How surprising every training token is to the plain base LLM, computed once."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ztok_rag.codec.compressed_text import levels_of
from ztok_rag.codec.compressor import batches_by_size, best_batch_tokens, surprisal
from ztok_rag.codec.model import ZModel
from ztok_rag.codec.serialization import write_atomic
from ztok_rag.codec.token_code import TokenCode
from ztok_rag.training.data import TrainingData

_SECONDS_BETWEEN_SAVES = 20.0


@dataclass
class Surprisal:
    """What the base says of each token of all passages, end to end.

    Attributes:
        nats: `[tokens]` surprisal.
        predicted: `[tokens]` whether the base prefers the token to all others with a margin.
    """

    nats: NDArray[np.float16]
    predicted: NDArray[np.bool_]


def weigh_passages(
    model: ZModel, data: TrainingData, *, batch_tokens: int | None = None, progress: bool = True
) -> Surprisal:
    """Run the plain base over all passages, or go on with a run that was interrupted.

    Args:
        model: whose base it is; the passages are cut into windows as its compressor does.
        data: the passages. What is computed lies in its folder.
        batch_tokens: per forward pass; `None` is what suits the device.
        progress: show a bar.
    """
    name = f"surprisal-{model.config.base_fingerprint}-{model.config.window}"
    folder = data.folder / name
    folder.mkdir(exist_ok=True)
    tokens = len(data.passages.ids)
    if not (folder / "whole").exists():
        with FileLock(folder / "lock"):
            if not (folder / "whole").exists():
                if batch_tokens is None:
                    device = model.base.device
                    batch_tokens = 65536 if device.type == "cuda" else best_batch_tokens(device)
                _weigh(model, data, folder, batch_tokens, progress)
    nats = np.memmap(folder / "nats", np.float16, "r", shape=(tokens,))
    predicted = np.memmap(folder / "predicted", np.bool_, "r", shape=(tokens,))
    return Surprisal(nats, predicted)


def fit_code(model: ZModel, data: TrainingData, surprisal: Surprisal) -> None:
    """Fit a fresh model's token code on the training text."""
    cuts = data.passages.edges[1:-1]
    levels = levels_of(surprisal.nats.astype(np.float64), np.asarray(surprisal.predicted))
    texts: list[Any] = np.split(np.asarray(data.passages.ids), cuts)
    split: list[Any] = np.split(levels, cuts)
    model.token_code = TokenCode.fit(texts, split, model.base.vocab_size)


def _weigh(
    model: ZModel, data: TrainingData, folder: Path, batch_tokens: int, progress: bool
) -> None:
    tokens = len(data.passages.ids)
    windows = list(_windows(data, model.config.window))
    batches = list(batches_by_size([b - a + 1 for a, b in windows], batch_tokens))
    state = folder / "progress.json"
    done = 0
    if state.exists():
        known = json.loads(state.read_text(encoding="utf-8"))
        done = known["done"] if known["batch_tokens"] == batch_tokens else 0
    arrays = {
        name: np.memmap(folder / name, dtype, "r+" if done else "w+", shape=(tokens,))
        for name, dtype in (("nats", np.float16), ("predicted", np.bool_))
    }

    def save(done: int) -> None:
        for array in arrays.values():
            array.flush()  # type: ignore[no-untyped-call]
        record = {"done": done, "batch_tokens": batch_tokens}
        write_atomic(state, json.dumps(record).encode())

    bar = tqdm(total=tokens, desc="Weighing", unit="token", unit_scale=True, disable=not progress)
    saved = time.monotonic()
    try:
        for number, batch in enumerate(batches):
            own = [windows[i] for i in batch]
            bar.update(sum(b - a for a, b in own))
            if number < done:
                continue
            _weigh_batch(model, data, own, arrays)
            if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                save(number + 1)
                saved = time.monotonic()
    finally:
        bar.close()
    save(len(batches))
    (folder / "whole").touch()


def _windows(data: TrainingData, window: int) -> Iterator[tuple[int, int]]:
    """Tokens `[start, end)` of all passages, each passage in windows of its own."""
    edges = data.passages.edges.tolist()
    for start, end in itertools.pairwise(edges):
        for at in range(start, end, window):
            yield at, min(end, at + window)


@torch.inference_mode()
def _weigh_batch(
    model: ZModel, data: TrainingData, windows: list[tuple[int, int]], arrays: dict[str, Any]
) -> None:
    base = model.base
    ids = np.full((len(windows), 1 + max(b - a for a, b in windows)), model.start_token, np.int64)
    for row, (start, end) in enumerate(windows):
        ids[row, 1 : 1 + end - start] = data.passages.ids[start:end]
    tokens = torch.from_numpy(ids).to(base.device)
    with base.adapter(None):
        # What pads a row comes after it, where a causal LM does not look.
        hidden = base.decoder(inputs_embeds=base.embed(tokens), use_cache=False).last_hidden_state
    nats, predicted = surprisal(hidden[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), base.head)
    for row, (start, end) in enumerate(windows):
        own = slice(row * (ids.shape[1] - 1), row * (ids.shape[1] - 1) + end - start)
        arrays["nats"][start:end] = nats[own]
        arrays["predicted"][start:end] = predicted[own]
