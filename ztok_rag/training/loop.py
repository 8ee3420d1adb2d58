"""The training loop: steps, log, checkpoints, exact resume, several devices."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.utils import gather_object  # type: ignore[import-untyped]
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from ztok_rag.codec.model import ZModel
from ztok_rag.codec.serialization import write_atomic
from ztok_rag.errors import CheckpointError, DataError
from ztok_rag.training.batches import Batch, StreamPlan, StreamState, load_batches
from ztok_rag.training.objective import Losses, Objective
from ztok_rag.training.optimizing import take_step, warmup_cosine
from ztok_rag.training.rows import Kind, Rows
from ztok_rag.training.run_state import check_same, open_log

_FALLING, _EARLY, _LATE = 0.5, 1.6, 0.7
"""The loss of targets that weigh less than `_FALLING` weighs `_EARLY` times as much at first, and
`_LATE` times at last."""

_POINTER = 0.7  # weight of the pointer's loss
_SMOOTHING = 0.98


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        steps: optimizer steps.
        size: positions of a batch.
        per_step: batches of a step, over all devices.
        lr: peak learning rate, after `warmup` steps; then a cosine to `floor` of it.
        decay: weight decay of AdamW.
        clip: longest gradient.
        workers: processes that make the batches of each device; 0 makes them beside training.
        seed: of rows and weights.
        save_minutes: between checkpoints.
        is_compiled: run the base's layers through `torch.compile`.
    """

    steps: int = 1000
    size: int = 3072
    per_step: int = 1
    lr: float = 1e-3
    warmup: int = 60
    floor: float = 0.02
    decay: float = 0.1
    clip: float = 1.0
    workers: int = 0
    seed: int = 0
    save_minutes: float = 5.0
    is_compiled: bool = False

    def learning_rate(self, step: int) -> float:
        """Of the step after `step` others."""
        return self.lr * warmup_cosine(step, steps=self.steps, warmup=self.warmup, floor=self.floor)


class Trainer:
    """Trains a `ZModel` on rows of some kinds, and can be killed at any moment.

    `output` holds the checkpoint in the form `ZModel.from_pretrained` loads, `log.jsonl` with a
    line per step, and the state from which the same settings resume exactly.
    """

    def __init__(
        self,
        model: ZModel,
        rows: Rows,
        shares: Mapping[str, float],
        settings: TrainSettings,
        output: str | Path,
        *,
        accelerator: Accelerator | None = None,
        number: int = 0,
    ) -> None:
        """See the class.

        Args:
            model: what is trained: its adapter, packer and pointer.
            rows: what draws rows.
            shares: of each kind of row.
            settings: see `TrainSettings`.
            output: folder of the run.
            accelerator: of several devices; `None` trains on the model's alone.
            number: of this training among those of one seed, so that each sees other rows.

        Raises:
            DataError: the batches of a step cannot be shared out among the devices.
        """
        self.model = model
        self.rows = rows
        self.shares = dict(shares)
        self.settings = settings
        self.output = Path(output)
        self.accelerator = accelerator
        self.number = number
        self.processes = accelerator.num_processes if accelerator else 1
        self.process = accelerator.process_index if accelerator else 0
        if settings.per_step % self.processes:
            raise DataError(
                f"{settings.per_step} batches a step cannot be shared out among "
                f"{self.processes} devices; give a multiple."
            )
        self.plan = StreamPlan(settings.per_step, settings.workers, self.process, self.processes)
        self.objective = Objective(model)
        self.parameters = dict(self.objective.named_parameters())
        device = model.base.device
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=settings.lr,
            betas=(0.9, 0.98),
            weight_decay=settings.decay,
            fused=device.type == "cuda",
        )
        self.step = 0
        self.seconds = 0.0
        self.mass = torch.zeros((), device=device)  # smoothed weight of a batch's targets
        self.states: dict[int, StreamState] = {}

    def train(self, *, progress: bool = True) -> None:
        """Go on to the last step. An interruption saves, and is then passed on."""
        settings, is_main = self.settings, self.process == 0
        self.resume()
        if self.step >= settings.steps:
            self.objective.publish()
            return
        if settings.is_compiled:
            # The states after the layer before the pointer are caught by a hook, uncompiled.
            for index, layer in enumerate(self.model.base.decoder.layers, start=1):
                if index != self.model.config.pointer_layer:
                    layer.compile()
        batches = load_batches(
            self.rows,
            self.shares,
            self.plan,
            size=settings.size,
            longest=self.model.base.max_positions,
            seed=[settings.seed, self.number],
            step=self.step,
            states=self.states,
            pin=self.model.base.device.type == "cuda",
        )
        log = open_log(self.output / "log.jsonl", self.step) if is_main else None
        bar = tqdm(
            total=settings.steps, initial=self.step, unit="step", disable=not (progress and is_main)
        )
        saved, interrupted = time.monotonic(), False
        try:
            with _interruption() as interruption:
                while self.step < settings.steps and not interrupted:
                    started = time.monotonic()
                    record = self.train_step(batches)
                    spent = time.monotonic() - started
                    self.seconds += spent
                    record["seconds"] = round(self.seconds, 3)
                    if log is not None:
                        log.write(json.dumps(record) + "\n")
                        log.flush()
                    bar.update()
                    bar.set_postfix(_postfix(record, spent))
                    due = time.monotonic() - saved > 60 * settings.save_minutes
                    interrupted, due = self._agree(interruption.is_set(), due)
                    if due and self.step < settings.steps:
                        self.save()
                        saved = time.monotonic()
            self.save()
        finally:
            bar.close()
            if log is not None:
                log.close()
        if interrupted:
            raise KeyboardInterrupt

    def train_step(self, batches: Iterator[Batch]) -> dict[str, Any]:
        """One optimizer step; returns its line of the log."""
        settings, device = self.settings, self.model.base.device
        own = [next(batches) for _ in range(settings.per_step // self.processes)]
        for batch in own:
            self.states[batch.stream] = batch.state
        mass = self._sum(torch.tensor(sum(batch.mass for batch in own), device=device))
        mass = mass / settings.per_step
        self.mass = _SMOOTHING * self.mass + (1 - _SMOOTHING) * mass if self.step else mass
        spent = self.step / settings.steps
        scale = 1 / (self.mass * settings.per_step)
        sums = torch.zeros(2, len(Kind) + 2, device=device)
        for batch in own:
            on_device = batch.to(device)
            losses = self.objective(on_device)
            torch.autograd.backward(_total(on_device, losses, spent) * scale)
            sums += _sums(on_device, losses)
        for parameter in self.parameters.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.processes > 1:
            self._sum_gradients()
            sums = self._sum(sums)
        lr = settings.learning_rate(self.step)
        norm = take_step(
            self.optimizer, self.parameters.values(), lr=lr, clip=settings.clip, step=self.step
        )
        self.step += 1
        return self._record(sums, norm, lr)

    def _record(self, sums: Tensor, norm: float, lr: float) -> dict[str, Any]:
        totals, counts = sums.tolist()
        means = [t / n if n else None for t, n in zip(totals, counts, strict=True)]
        names = [*(kind.name.lower() for kind in Kind), "pointer", "found"]
        return {
            "step": self.step,
            "lr": round(lr, 8),
            **{k: v if v is None else round(v, 5) for k, v in zip(names, means, strict=True)},
            "grad_norm": round(norm, 4),
            "positions": self.settings.size * self.settings.per_step,
        }

    # Devices

    def _sum(self, value: Tensor) -> Tensor:
        """A value summed over all devices."""
        if self.accelerator is None or self.processes == 1:
            return value
        summed: Tensor = self.accelerator.reduce(value, "sum")
        return summed

    def _sum_gradients(self) -> None:
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        flat = self._sum(torch.cat([g.flatten() for g in gradients]))
        parts = torch.split(flat, [g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def _agree(self, *flags: bool) -> list[bool]:
        """Which of the flags any process has raised."""
        if self.processes == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.float32, device=self.model.base.device)
        return [value > 0 for value in self._sum(raised).tolist()]

    # State

    def save(self) -> None:
        """Write the checkpoint and the state to resume from; every process calls it."""
        states = {str(number): state for number, state in self.states.items()}
        if self.processes > 1:
            gathered = gather_object([states])
            states = {k: v for own in gathered for k, v in own.items()}
        if self.process == 0:
            self.objective.publish()
            self.output.mkdir(parents=True, exist_ok=True)
            self.model.save_pretrained(self.output / "checkpoint")
            self._write_state(states)
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def _write_state(self, states: dict[str, StreamState]) -> None:
        """A folder with the tensors, then a file that names it."""
        name = f"state-{self.step:07d}"
        folder, temporary = self.output / name, self.output / f".{name}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        save_file(self._tensors(), temporary / "weights.safetensors")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        state = {
            "folder": name,
            "step": self.step,
            "seconds": self.seconds,
            "mass": float(self.mass),
            "streams": states,
            "settings": self._described(),
        }
        write_atomic(self.output / "state.json", json.dumps(state).encode())
        for old in self.output.glob("state-*"):
            if old.name != name:
                shutil.rmtree(old)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {"rng": torch.get_rng_state()}
        for name, parameter in self.parameters.items():
            tensors[f"weight.{name}"] = parameter.detach()
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"{key}.{name}"] = value
        return {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}

    def _described(self) -> Any:
        """What a run to go on with must have in common with this one."""
        settings = dataclasses.asdict(self.settings)
        for free in ("save_minutes", "is_compiled"):
            settings.pop(free)
        settings |= {"shares": self.shares, "rows": dataclasses.asdict(self.rows.settings)}
        settings |= {"data": self.rows.data.folder.name, "draws": list(self.rows.data.shares)}
        return json.loads(json.dumps(settings))

    def resume(self) -> bool:
        """Load the state in `output`, if there is one.

        Raises:
            CheckpointError: it was written under other settings, or is damaged.
        """
        path = self.output / "state.json"
        if not path.exists():
            return False
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            tensors = load_file(self.output / state["folder"] / "weights.safetensors")
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise CheckpointError(
                f"the state in {self.output} is damaged ({error}); give another output folder."
            ) from error
        check_same(self.output, state["settings"], self._described())
        self._load_tensors(tensors)
        self.step, self.seconds = state["step"], state["seconds"]
        self.mass.fill_(state["mass"])
        self.states = {int(number): own for number, own in state["streams"].items()}
        return True

    @torch.no_grad()
    def _load_tensors(self, tensors: dict[str, Tensor]) -> None:
        torch.set_rng_state(tensors["rng"])
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"weight.{name}"])
            own = {k: tensors.get(f"{k}.{name}") for k in ("step", "exp_avg", "exp_avg_sq")}
            device = parameter.device
            self.optimizer.state[parameter] = {
                k: v.to(device if k != "step" or device.type == "cuda" else "cpu")
                for k, v in own.items()
                if v is not None
            }


def _total(batch: Batch, losses: Losses, spent: float) -> Tensor:
    """The weighted sum of a batch's losses when a share `spent` of the training is over."""
    falling = _EARLY + (_LATE - _EARLY) * spent
    weight = torch.where(batch.weight < _FALLING, batch.weight * falling, batch.weight)
    return (losses.nats * weight).sum() + _POINTER * (losses.pointer * batch.shares).sum()


def _sums(batch: Batch, losses: Losses) -> Tensor:
    """Sums and numbers of the nats of each kind of target, of the pointer's, and of its hits."""
    with torch.no_grad():
        counted = losses.counted.float()
        nats = losses.nats.new_zeros(len(Kind)).index_add(0, batch.kind, losses.nats)
        counts = losses.nats.new_zeros(len(Kind)).index_add(
            0, batch.kind, torch.ones_like(losses.nats)
        )
        pointer = torch.stack([losses.pointer.sum().float(), losses.found.sum().float()])
        return torch.stack(
            [torch.cat([nats, pointer]), torch.cat([counts, counted.sum().repeat(2)])]
        )


def _postfix(record: Mapping[str, Any], spent: float) -> dict[str, str]:
    """What the bar shows beside steps and time left."""
    kinds = [kind.name.lower() for kind in Kind]
    shown = {k: f"{record[k]:.3f}" for k in kinds if record[k] is not None}
    return {**shown, "positions/s": f"{record['positions'] / spent:,.0f}"}


@contextmanager
def _interruption() -> Iterator[threading.Event]:
    """An event that is set by Ctrl-C or a request to end, rather than that they end the body.

    A second Ctrl-C ends it at once.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
