"""The loop of a small training that a CPU does: steps, log, scores, exact resume."""

from __future__ import annotations

import dataclasses
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm.auto import tqdm

from ztok_rag.training.optimizing import take_step, warmup_cosine
from ztok_rag.training.run_state import load_state, open_log, save_state

B = TypeVar("B")
"""What a step learns from."""


@dataclass(frozen=True)
class StepSettings:
    """How a small part of a checkpoint is trained.

    Attributes:
        steps: optimizer steps.
        batch: examples per step.
        lr: peak learning rate, after `warmup` steps; then a cosine to zero.
        seed: of weights, and of what is drawn.
        evaluate_every: steps between scores on what is held out.
        save_minutes: between states to resume from.
    """

    steps: int
    batch: int
    lr: float
    warmup: int
    seed: int = 0
    evaluate_every: int = 200
    save_minutes: float = 5.0

    def learning_rate(self, step: int) -> float:
        """Of the step after `step` others."""
        return self.lr * warmup_cosine(step, steps=self.steps, warmup=self.warmup, floor=0.0)

    def described(self) -> dict[str, Any]:
        """What a run must have in common with the one that goes on with it."""
        described = dataclasses.asdict(self)
        described.pop("save_minutes")
        return described


class StepTrainer(ABC, Generic[B]):
    """Trains some weights, and can be stopped at any moment.

    Attributes:
        module: that has them.
        parameters: what is trained, by name.
        optimizer: of these.
        step: steps that were taken.
        seconds: that they took.
    """

    name: str
    """What the progress bar calls it."""

    def __init__(
        self,
        module: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        optimizer: Optimizer,
        settings: StepSettings,
    ) -> None:
        self.module = module
        self.parameters = dict(parameters)
        self.optimizer = optimizer
        self.step = 0
        self.seconds = 0.0
        self._plan = settings
        self._batches: Iterator[B] | None = None

    @abstractmethod
    def batches(self, first: int) -> Iterator[B]:
        """What the steps from `first` on learn from."""

    @abstractmethod
    def loss(self, batch: B) -> tuple[Tensor, dict[str, Any]]:
        """The loss of a step, and what its line of the log says, `nats` at least."""

    @abstractmethod
    def evaluate(self) -> dict[str, Any]:
        """Scores on what is held out, for the log."""

    def train_step(self) -> dict[str, Any]:
        """One optimizer step; returns its line of the log."""
        plan = self._plan
        if self._batches is None:
            self._batches = self.batches(self.step)
        torch.manual_seed(self.step_seed)  # of dropout, as when resumed
        self.module.train()
        loss, record = self.loss(next(self._batches))
        torch.autograd.backward(loss)
        lr = plan.learning_rate(self.step)
        take_step(self.optimizer, self.parameters.values(), lr=lr, clip=1.0, step=self.step)
        self.step += 1
        return {"step": self.step, "lr": round(lr, 8), **record}

    @property
    def step_seed(self) -> int:
        """Of what is random in the next step."""
        return self._plan.seed * 1_000_003 + self.step

    def train(self, output: Path, *, progress: bool = True) -> None:
        """Go on to the last step. An interruption saves, and is then passed on."""
        plan, parameters = self._plan, list(self.parameters.items())
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.step, self.seconds = load_state(output, parameters, self.optimizer)
        log = open_log(output / "log.jsonl", self.step)
        bar = tqdm(
            total=plan.steps, initial=self.step, desc=self.name, unit="step", disable=not progress
        )
        saved = time.monotonic()
        try:
            while self.step < plan.steps:
                started = time.monotonic()
                record = self.train_step()
                if self.step % plan.evaluate_every == 0 or self.step == plan.steps:
                    record |= self.evaluate()
                self.seconds += time.monotonic() - started
                record["seconds"] = round(self.seconds, 3)
                log.write(json.dumps(record) + "\n")
                log.flush()
                bar.update()
                bar.set_postfix(nats=f"{record['nats']:.3f}")
                if time.monotonic() - saved > 60 * plan.save_minutes:
                    save_state(output, parameters, self.optimizer, self.step, self.seconds)
                    saved = time.monotonic()
        finally:
            bar.close()
            log.close()
            save_state(output, parameters, self.optimizer, self.step, self.seconds)
            self.module.requires_grad_(False).eval()
