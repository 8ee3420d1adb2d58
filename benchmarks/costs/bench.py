"""One measurement after another: what all parts share, repeats in turns, and their rows."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from costs.corpus import Corpus
from ztok_rag.codec.base import BaseLM
from ztok_rag.codec.compressor import ZCompressor
from ztok_rag.evaluation import Row


@dataclass(frozen=True)
class Bench:
    """What every part needs."""

    compressor: ZCompressor
    corpus: Corpus
    rates: tuple[float, ...]
    repeats: int
    options: argparse.Namespace

    @property
    def base(self) -> BaseLM:
        return self.compressor.model.base

    @property
    def raw(self) -> str | None:
        """The adapter that reads raw text; `None`, the plain base, where none was trained to."""
        return "text" if "text" in self.compressor.reader.adapters else None

    @property
    def raw_arm(self) -> str:
        return "text-reader" if self.raw else "text"

    def row(
        self,
        task: str,
        arm: str,
        rate: float,
        metric: str,
        values: Sequence[float],
        k: int = 0,
        **fields: Any,
    ) -> Row:
        """The median of measurements, with its interval, p10 and p90."""
        low, high = np.quantile(values, [0.1, 0.9])
        extra = {"p10": float(low), "p90": float(high), **fields.pop("extra", {})}
        interval = median_ci(values, self.options.seed)
        return Row(
            "latency", task, arm, rate, k, metric, float(np.median(values)), interval,
            len(values), extra=extra, **fields,
        )  # fmt: skip


def median_ci(values: Sequence[float], seed: int) -> tuple[float, float]:
    """95% percentile bootstrap interval of the median."""
    array = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(array), size=(2000, len(array)))
    low, high = np.quantile(np.median(array[drawn], axis=1), [0.025, 0.975])
    return float(low), float(high)


def seconds(base: BaseLM, work: Callable[[], Any]) -> float:
    """Wall-clock seconds of some work, the device's included."""
    synchronize(base)
    started = time.perf_counter()
    work()
    synchronize(base)
    return time.perf_counter() - started


def synchronize(base: BaseLM) -> None:
    if base.device.type == "cuda":
        torch.cuda.synchronize(base.device)


def in_turns(
    base: BaseLM, works: Mapping[str, Callable[[], Any]], repeats: int, bar: tqdm[Any]
) -> dict[str, list[float]]:
    """Seconds of each work; all take turns, and the first turn warms up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            bar.set_postfix_str(f"{name}, {turn} of {repeats}")
            took = seconds(base, work)
            if turn:
                times[name].append(took)
    return times
