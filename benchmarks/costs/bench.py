"""What all measurements share: settings, timing in turns, and rows of results."""

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
from ztok_rag.evaluation import Row, bootstrap_ci
from ztok_rag.evaluation.intervals import median


@dataclass(frozen=True)
class Bench:
    """The settings of all parts."""

    compressor: ZCompressor
    corpus: Corpus
    rates: tuple[float, ...]
    repeats: int
    options: argparse.Namespace

    @property
    def base(self) -> BaseLM:
        return self.compressor.model.base

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
        """A row of the median of measurements, with its interval, p10 and p90."""
        low, high = np.quantile(values, [0.1, 0.9])
        interval = bootstrap_ci(values, seed=self.options.seed, statistic=median)
        return Row(
            "latency", task, arm, rate, k, metric, float(np.median(values)), interval,
            len(values), p10=float(low), p90=float(high), **fields,
        )  # fmt: skip


def seconds(base: BaseLM, work: Callable[[], Any]) -> float:
    """Wall-clock seconds of some work, until the device has finished it."""
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
    """Seconds of each work in every turn. The works take turns; the first turn is a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            bar.set_postfix_str(f"{name}, {turn} of {repeats}")
            took = seconds(base, work)
            if turn:
                times[name].append(took)
    return times
