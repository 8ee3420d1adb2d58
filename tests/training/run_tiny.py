"""Trains a tiny base in each of several processes, interrupted after three steps and resumed.

usage: run_tiny.py QUESTIONS OUTPUT
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tiny_base import make_rows, tiny_model

from ztok_rag.training.batches import Batch
from ztok_rag.training.loop import Trainer, TrainSettings
from ztok_rag.training.rows import SHARES


class Interrupted(Trainer):
    """Ends after three steps."""

    def train_step(self, batches: Iterator[Batch]) -> dict[str, Any]:
        if self.step == 3:
            raise KeyboardInterrupt
        record = super().train_step(batches)
        self.save()
        return record


def train(questions: Path, output: Path, steps: int) -> None:
    """Two batches a step, by all processes together; the schedule is that of eight steps."""
    model = tiny_model()
    rows = make_rows(model, questions, output / "data")
    settings = TrainSettings(steps=8, size=256, per_step=2, lr=3e-3, warmup=2)
    kind = Trainer if steps == 8 else Interrupted
    trainer = kind(model, rows, SHARES, settings, output, accelerator=Accelerator(cpu=True))
    trainer.train(progress=False)


if __name__ == "__main__":
    places = [Path(argument) for argument in sys.argv[1:]]
    try:
        train(*places, 3)
    except KeyboardInterrupt:
        train(*places, 8)
