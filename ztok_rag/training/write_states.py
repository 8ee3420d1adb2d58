"""What a write head is trained on: windows of text, and the frozen LLM's states in them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from ztok_rag.codec.compressor import batches_by_size
from ztok_rag.codec.model import READ, ZModel
from ztok_rag.codec.prompts import REPEAT_PROMPT
from ztok_rag.errors import CheckpointError, DataError
from ztok_rag.training.data import TrainingData
from ztok_rag.training.stepping import StepSettings

HELD_OUT = 20
"""One of so many windows is never trained on."""

_SHARD = 32  # windows whose states lie in one file
_BATCH_POSITIONS = 2048
_LARGEST_PACKED = 8


@dataclass(frozen=True)
class WriteSettings(StepSettings):
    """How to train the write head; a step is on states.

    Attributes:
        positions: states of the LLM to train on. Each takes two bytes per hidden unit on disk and
            in memory.
        window: most tokens of a text that are read at once.
        depth: tokens written from each, after the LLM's own.
        width: of the head's memory.
        vocabulary: tokens that it can write: the commonest of the data.
        decay: weight decay of AdamW.
        dropout: of the head.
    """

    steps: int = 1000
    batch: int = 256
    lr: float = 2e-3
    warmup: int = 50
    evaluate_every: int = 50
    save_minutes: float = 2.0
    positions: int = 40_000
    window: int = 192
    depth: int = 3
    width: int = 448
    vocabulary: int = 8192
    decay: float = 0.05
    dropout: float = 0.25


@dataclass
class States:
    """What the frozen LLM says at each token of the windows, end to end.

    Attributes:
        ids: int32 `[n]` the tokens.
        states: float16 `[n, hidden]` the LLM's last state before each token.
        masses: float32 `[n]` log of the sum of its exponentiated scores there.
        best: int32 `[n]` its likeliest token there.
        starts: int64 `[m]` places from which `depth` further tokens follow in the window.
        held: int64 `[h]` likewise, of windows that are held out.
    """

    ids: Tensor
    states: Tensor
    masses: Tensor
    best: Tensor
    starts: Tensor
    held: Tensor


@dataclass(frozen=True)
class _Window:
    """A text as the LLM reads it.

    Attributes:
        adapter: of the LLM.
        codes: `[n, slots]` what is read before the text.
        ids: the text.
    """

    adapter: str | None
    codes: Tensor
    ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.codes) + len(self.ids)


def make_window(model: ZModel, data: TrainingData, settings: WriteSettings, number: int) -> _Window:
    """The window of a number: plain text for the base or the reader, or Z-tokens to be repeated."""
    rng = np.random.default_rng([settings.seed, number])
    ids = np.asarray(data.passages[int(rng.integers(len(data.passages)))], np.int64)
    if len(ids) > settings.window:
        start = int(rng.integers(len(ids) - settings.window + 1))
        ids = ids[start : start + settings.window]
    rows: list[Sequence[int]] = [[model.start_token]]
    kind = number % 4
    if kind == 3:
        largest = int(rng.integers(1, _LARGEST_PACKED + 1))
        at = 0
        while at < len(ids):
            size = int(rng.integers(1, largest + 1))
            rows.append(ids[at : at + size].tolist())
            at += size
        prompt = model.base.tokenizer(REPEAT_PROMPT, add_special_tokens=False)["input_ids"]
        rows += [[token] for token in prompt]
    codes = torch.full((len(rows), model.config.slots), -1)
    for place, row in enumerate(rows):
        codes[place, : len(row)] = torch.tensor(row)
    return _Window(None if kind < 2 else READ, codes, ids)


def collect_states(
    model: ZModel,
    data: TrainingData,
    folder: Path,
    settings: WriteSettings,
    *,
    progress: bool = True,
) -> States:
    """The LLM's states of `settings.positions` tokens or a little more; files that lie in `folder`
    already are not computed again.

    Raises:
        DataError: the data have too few tokens.
        CheckpointError: a file is damaged.
    """
    if len(data.passages.ids) < 2 * settings.window:
        raise DataError("there is too little text to train on; give more --data.")
    folder.mkdir(exist_ok=True)
    shards: list[dict[str, Tensor]] = []
    collected = 0
    with tqdm(total=settings.positions, desc="states", unit="token", disable=not progress) as bar:
        while collected < settings.positions:
            path = folder / f"{len(shards):05d}.safetensors"
            if not path.exists():
                first = _SHARD * len(shards)
                windows = [
                    make_window(model, data, settings, number)
                    for number in range(first, first + _SHARD)
                ]
                temporary = path.with_suffix(".tmp")
                save_file(_read_windows(model, windows), temporary)
                os.replace(temporary, path)
            try:
                shards.append(load_file(path))
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{path} is damaged ({error}); delete it.") from error
            new = len(shards[-1]["ids"])
            collected += new
            bar.update(min(new, settings.positions - bar.n))
    return _joined(shards, settings.depth)


@torch.inference_mode()
def _read_windows(model: ZModel, windows: Sequence[_Window]) -> dict[str, Tensor]:
    base = model.base
    found: dict[int, dict[str, Tensor]] = {}
    for adapter in (None, READ):
        own = [number for number, window in enumerate(windows) if window.adapter == adapter]
        for batch in batches_by_size([len(windows[i]) for i in own], _BATCH_POSITIONS):
            numbers = [own[i] for i in batch]
            rows = []
            for window in (windows[i] for i in numbers):
                text = torch.from_numpy(window.ids).to(base.device)
                codes = model.embed_codes(window.codes.to(base.device))
                rows.append(torch.cat([codes, base.embed(text)]))
            with base.adapter(adapter):
                # What pads a row comes after it, where a causal LM does not look.
                hidden = base.decoder(
                    inputs_embeds=pad_sequence(rows, batch_first=True), use_cache=False
                ).last_hidden_state
            for row, number in enumerate(numbers):
                before, length = len(windows[number].codes), len(windows[number].ids)
                states = hidden[row, before - 1 : before - 1 + length]
                logits = base.head(states).float()
                found[number] = {
                    "ids": torch.from_numpy(windows[number].ids).int(),
                    "states": states.half().cpu(),
                    "masses": logits.logsumexp(-1).cpu(),
                    "best": logits.argmax(-1).int().cpu(),
                }
    ordered = [found[number] for number in range(len(windows))]
    tensors = {name: torch.cat([own[name] for own in ordered]) for name in ordered[0]}
    lengths = torch.tensor([len(window.ids) for window in windows])
    return {**{name: t.contiguous() for name, t in tensors.items()}, "lengths": lengths}


def _joined(shards: Sequence[dict[str, Tensor]], depth: int) -> States:
    lengths = torch.cat([shard["lengths"] for shard in shards]).tolist()
    starts: list[Tensor] = []
    held: list[Tensor] = []
    at = 0
    for number, length in enumerate(lengths):
        places = torch.arange(at, at + max(0, length - depth))
        # Kinds of windows take turns by fours, so that whole fours are held out.
        (held if number // 4 % HELD_OUT == HELD_OUT - 1 else starts).append(places)
        at += length
    joined = {
        name: torch.cat([shard[name] for shard in shards])
        for name in ("ids", "states", "masses", "best")
    }
    if not held:  # so few windows that the last one stands for them
        held.append(starts.pop())
    return States(**joined, starts=torch.cat(starts), held=torch.cat(held))
