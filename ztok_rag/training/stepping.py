"""The loop of a small training that a CPU does: steps, log, scores, exact resume."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import nn
from torch.optim import Optimizer
from tqdm.auto import tqdm

from ztok_rag.training.run_state import load_state, open_log, save_state


class StepSettings(Protocol):
    """What the loop asks of settings."""

    @property
    def steps(self) -> int: ...

    @property
    def evaluate_every(self) -> int: ...

    @property
    def save_minutes(self) -> float: ...


class StepTrainer(ABC):
    """Trains some weights, and can be stopped at any moment.

    Attributes:
        parameters: what is trained, by name.
        optimizer: of these.
        step: steps that were taken.
        seconds: that they took.
    """

    name: str
    """What the progress bar calls it."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer, settings: StepSettings
    ) -> None:
        self.parameters = dict(parameters)
        self.optimizer = optimizer
        self.step = 0
        self.seconds = 0.0
        self._plan = settings

    @abstractmethod
    def train_step(self) -> dict[str, Any]:
        """One optimizer step; returns its line of the log, with the loss as `nats`."""

    @abstractmethod
    def evaluate(self) -> dict[str, Any]:
        """Scores on what is held out, for the log."""

    def train(self, output: Path, *, progress: bool = True) -> None:
        """Go on to the last step. An interruption saves, and is then passed on."""
        plan, parameters = self._plan, list(self.parameters.items())
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
