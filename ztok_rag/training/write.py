"""Training of the write head on states of the frozen LLM, which are computed once and kept."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from ztok_rag.codec.compressor import batches_by_size
from ztok_rag.codec.model import READ, ZModel
from ztok_rag.codec.prompts import REPEAT_PROMPT
from ztok_rag.codec.serialization import write_atomic
from ztok_rag.codec.write_head import BINS, WriteHead
from ztok_rag.errors import CheckpointError, DataError
from ztok_rag.training.data import TrainingData

HELD_OUT = 20
"""One of so many windows is never trained on."""

_SHARD = 32  # windows whose states lie in one file
_BATCH_POSITIONS = 2048
_LARGEST_PACKED = 8
_DECAY = 0.8  # weight of the loss of each further token, in that of the one before
_PRIOR = 20.0  # chains, in how often the LLM agrees


@dataclass(frozen=True)
class WriteSettings:
    """How to train the write head.

    Attributes:
        positions: states of the LLM to train on. Each takes two bytes per hidden unit on disk and
            in memory.
        window: most tokens of a text that are read at once.
        steps: optimizer steps.
        batch: states of a step.
        depth: tokens written from each, after the LLM's own.
        width: of the head's memory.
        vocabulary: tokens that it can write: the commonest of the data.
        lr: peak learning rate, after `warmup` steps; then a cosine to zero.
        decay: weight decay of AdamW.
        dropout: of the head.
        seed: of weights, windows and batches.
        evaluate_every: steps between scores on the windows that are held out.
        save_minutes: between states to resume from.
    """

    positions: int = 40_000
    window: int = 192
    steps: int = 1000
    batch: int = 256
    depth: int = 3
    width: int = 448
    vocabulary: int = 8192
    lr: float = 2e-3
    warmup: int = 50
    decay: float = 0.05
    dropout: float = 0.25
    seed: int = 0
    evaluate_every: int = 50
    save_minutes: float = 2.0

    def learning_rate(self, step: int) -> float:
        """Of the step after `step` others."""
        rise = min(1.0, (step + 1) / min(self.warmup, max(1, self.steps // 4)))
        return self.lr * rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))


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


def train_write(
    model: ZModel,
    data: TrainingData,
    output: Path,
    settings: WriteSettings | None = None,
    *,
    progress: bool = True,
) -> WriteHead:
    """Train a write head for a checkpoint, or go on with the run in `output`.

    `output` holds `log.jsonl` with a line per step, the states of the LLM, and the state from which
    the same settings resume exactly.

    Args:
        model: the checkpoint; it gets the head.
        data: passages.
        output: folder of the run.
        settings: see `WriteSettings`.
        progress: show bars with rate and time left.

    Raises:
        CheckpointError: `output` holds a run with other settings, or a damaged one.
        DataError: the data have too few tokens.
    """
    settings = settings or WriteSettings()
    output.mkdir(parents=True, exist_ok=True)
    _claim(output, _described(model, data, settings))
    states = collect_states(model, data, output / "states", settings, progress=progress)
    trainer = WriteTrainer(model, common_tokens(model, data, settings.vocabulary), states, settings)
    trainer.train(output, progress=progress)
    trainer.calibrate()
    model.set_writer(trainer.head.requires_grad_(False).eval())
    return trainer.head


def _described(model: ZModel, data: TrainingData, settings: WriteSettings) -> dict[str, Any]:
    own = dataclasses.asdict(settings)
    own.pop("save_minutes")
    return {**own, "model": model.fingerprint, "data": data.folder.name}


def _claim(output: Path, described: dict[str, Any]) -> None:
    """Make sure that a folder holds no run with other settings, and note these."""
    path = output / "settings.json"
    if not path.exists():
        write_atomic(path, (json.dumps(described, indent=2) + "\n").encode())
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); give another output folder."
        ) from error
    if known != described:
        changed = sorted(key for key in described if described[key] != known.get(key))
        raise CheckpointError(
            f"{output} holds a run with other settings ({', '.join(changed)}); repeat its settings "
            "to resume it, or give another output folder."
        )


def common_tokens(model: ZModel, data: TrainingData, count: int) -> Tensor:
    """Ids `[v]` of the commonest tokens of the data, no special ones."""
    counts = np.bincount(np.asarray(data.passages.ids), minlength=model.base.vocab_size)
    counts[model.base.tokenizer.all_special_ids] = 0
    order = np.argsort(-counts, kind="stable")[:count]
    return torch.from_numpy(np.sort(order[counts[order] > 0]))


# States


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


# Training


class WriteTrainer:
    """Trains a head on states, so that it gives each next token the chance that the LLM gives it.

    Learning from the LLM's own distribution rather than from the text (Hinton et al. 2015, arXiv
    1503.02531) makes drafts that the LLM confirms.
    """

    def __init__(
        self, model: ZModel, vocabulary: Tensor, states: States, settings: WriteSettings
    ) -> None:
        base = model.base
        self.states = states
        self.settings = settings
        self.device = base.device
        torch.manual_seed(settings.seed)
        head = WriteHead(base.hidden_size, vocabulary, settings.width, settings.dropout)
        self.head = head.to(self.device)
        self.rows = base.head.weight[self.head.vocabulary].detach().float()  # type: ignore[index]
        self.table = base.embeddings.weight.detach()
        self.scale = model.config.embedding_scale
        self.optimizer = torch.optim.AdamW(
            self.head.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=settings.decay
        )
        self.step = 0
        self.seconds = 0.0

    def chain(self, places: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """For each further token: what the LLM gives, what the head gives, and the LLM's best.

        Args:
            places: `[n]` in the states.

        Yields:
            Probabilities and log probabilities `[n, v + 1]`, and ids `[n]`.
        """
        own, device = self.states, self.device
        memory = self.head.open(own.states[places].to(device).float())
        for depth in range(1, self.settings.depth + 1):
            token = own.ids[places + depth - 1].long().to(device)
            embedded = nn.functional.embedding(token, self.table).float() / self.scale
            memory = self.head.step(memory, embedded)
            with torch.no_grad():
                state = own.states[places + depth].to(device).float()
                mass = own.masses[places + depth].to(device)
                listed = (state @ self.rows.T - mass.unsqueeze(1)).exp()
                rest = (1 - listed.sum(1, keepdim=True)).clamp(min=0)
                teacher = torch.cat([listed, rest], dim=1)
            best = own.best[places + depth].long().to(device)
            yield teacher, self.head(memory, self.rows), best

    def train(self, output: Path, *, progress: bool = True) -> None:
        """Go on to the last step. An interruption saves, and is then passed on."""
        settings = self.settings
        self.resume(output)
        log = _open_log(output / "log.jsonl", self.step)
        bar = tqdm(
            total=settings.steps, initial=self.step, desc="head", unit="step", disable=not progress
        )
        saved = time.monotonic()
        try:
            while self.step < settings.steps:
                started = time.monotonic()
                record = self.train_step()
                if self.step % settings.evaluate_every == 0 or self.step == settings.steps:
                    record |= self.evaluate()
                self.seconds += time.monotonic() - started
                record["seconds"] = round(self.seconds, 3)
                log.write(json.dumps(record) + "\n")
                log.flush()
                bar.update()
                bar.set_postfix(nats=f"{record['nats']:.3f}")
                if time.monotonic() - saved > 60 * settings.save_minutes:
                    self.save(output)
                    saved = time.monotonic()
        finally:
            bar.close()
            log.close()
            self.save(output)

    def batch(self, step: int) -> Tensor:
        """Places `[batch]` of a step; each epoch takes all once, in an order of its own."""
        size, starts = self.settings.batch, self.states.starts
        per_epoch = max(1, len(starts) // size)
        epoch, within = divmod(step, per_epoch)
        order = np.random.default_rng([self.settings.seed, 1, epoch]).permutation(len(starts))
        return starts[torch.from_numpy(order[within * size : (within + 1) * size])]

    def train_step(self) -> dict[str, Any]:
        """One optimizer step; returns its line of the log."""
        settings = self.settings
        torch.manual_seed(settings.seed * 1_000_003 + self.step)  # of dropout, as when resumed
        self.head.train()
        total = torch.zeros((), device=self.device)
        nats, agreed, weight, weights = [], [], 1.0, 0.0
        for teacher, own, best in self.chain(self.batch(self.step)):
            each = -(teacher * own).sum(1).mean()
            total = total + weight * each
            nats.append(float(each.detach()))
            agreed.append(float(self._agrees(own, best).float().mean()))
            weights += weight
            weight *= _DECAY
        torch.autograd.backward(total / weights)
        norm = nn.utils.clip_grad_norm_(self.head.parameters(), 1.0)
        if not math.isfinite(float(norm)):
            raise DataError(f"the loss is not finite at step {self.step}; lower --lr.")
        lr = settings.learning_rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {
            "step": self.step,
            "positions": self.step * settings.batch,
            "lr": round(lr, 8),
            "nats": round(sum(nats) / len(nats), 5),
            "agreement": [round(share, 4) for share in agreed],
        }

    def _agrees(self, own: Tensor, best: Tensor) -> Tensor:
        """`[n]` whether the head's likeliest token is the LLM's; "none of these" never is."""
        place = own.argmax(1)
        ids = torch.cat([self.head.vocabulary, self.head.vocabulary.new_full((1,), -1)])
        return ids[place] == best

    @torch.no_grad()
    def evaluate(self, most: int = 2048) -> dict[str, Any]:
        """Scores on windows that are held out."""
        found = self._held(most)
        agreed = torch.stack([own for _, own, _ in found]).float()
        nats = torch.stack([own for _, _, own in found]).mean(1)
        run = 1 + float(agreed.cumprod(0).sum(0).mean())
        return {
            "held_out_nats": [round(own, 5) for own in nats.tolist()],
            "held_out_agreement": [round(own, 4) for own in agreed.mean(1).tolist()],
            "held_out_run": round(run, 4),
        }

    @torch.no_grad()
    def calibrate(self, most: int = 8192) -> None:
        """Note how often the LLM agrees, by the head's confidence, on windows held out."""
        found = self._held(most)
        confidence = torch.cat([own for own, _, _ in found])
        agreed = torch.cat([own for _, own, _ in found]).double().cpu()
        place = (confidence * BINS).long().clamp(max=BINS - 1).cpu()
        middle = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
        right = torch.zeros(BINS, dtype=torch.float64).index_add(0, place, agreed)
        tried = torch.zeros(BINS, dtype=torch.float64).index_add(0, place, torch.ones_like(agreed))
        share = (right + _PRIOR * middle) / (tried + _PRIOR)
        self.head.agreement.copy_(share.cummax(0).values.float())

    def _held(self, most: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each further token: the head's confidence, whether the LLM agrees, and the nats."""
        self.head.eval()
        held = self.states.held
        places = held[torch.linspace(0, len(held) - 1, min(most, len(held))).long()]
        parts = [list(self._scores(part)) for part in torch.split(places, self.settings.batch)]
        return [
            (
                torch.cat([part[depth][0] for part in parts]),
                torch.cat([part[depth][1] for part in parts]),
                torch.cat([part[depth][2] for part in parts]),
            )
            for depth in range(self.settings.depth)
        ]

    def _scores(self, places: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for teacher, own, best in self.chain(places):
            yield own.amax(1).exp(), self._agrees(own, best), -(teacher * own).sum(1)

    def save(self, output: Path) -> None:
        """Write the state from which `resume` goes on; it is whole or not there."""
        tensors = {
            "step": torch.tensor([self.step]),
            "seconds": torch.tensor([self.seconds]).double(),
        }
        for name, parameter in self.head.named_parameters():
            tensors[f"weight.{name}"] = parameter.detach()
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"{key}.{name}"] = value
        temporary = output / "state.tmp"
        save_file({name: t.cpu().contiguous().clone() for name, t in tensors.items()}, temporary)
        os.replace(temporary, output / "state.safetensors")

    @torch.no_grad()
    def resume(self, output: Path) -> bool:
        """Load the state in `output`, if there is one.

        Raises:
            CheckpointError: it is damaged.
        """
        path = output / "state.safetensors"
        if not path.exists():
            return False
        try:
            tensors = load_file(path)
            for name, parameter in self.head.named_parameters():
                parameter.copy_(tensors[f"weight.{name}"])
                self.optimizer.state[parameter] = {
                    key: tensors[f"{key}.{name}"].to("cpu" if key == "step" else self.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"{key}.{name}" in tensors
                }
            self.step, self.seconds = int(tensors["step"]), float(tensors["seconds"])
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            raise CheckpointError(
                f"the state in {output} is damaged ({error}); give another output folder."
            ) from error
        return True


def _open_log(path: Path, steps: int) -> Any:
    """The log, without lines of steps that were lost with a kill."""
    lines = path.read_text(encoding="utf-8").splitlines(True) if path.exists() else []
    write_atomic(path, "".join(lines[:steps]).encode())
    return path.open("a", encoding="utf-8")
