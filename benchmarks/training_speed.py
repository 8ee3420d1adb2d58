"""Throughput of training against plain LoRA training (arXiv 2106.09685) of the same base LLM.

    python benchmarks/training_speed.py --data FILE.jsonl --output DIR

The two are measured in turns. Compute is counted in positions sent forward through the layers of
the base LLM. A backward pass counts as much, the output head by its share. Plain LoRA training
predicts every next token of the same texts, in full rows, with an adapter of the same rank on the
same layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common import Parser, positive, run_script
from ztok_rag.codec.base import BaseLM, dtype_name
from ztok_rag.codec.model import ZModel
from ztok_rag.codec.prompts import training_templates
from ztok_rag.evaluation import Row, bootstrap_ci, format_table, write_results
from ztok_rag.training.batches import BatchSettings, PackedBatches
from ztok_rag.training.objective import TrainSettings
from ztok_rag.training.passages import read_passages
from ztok_rag.training.trainer import MasterWeights, Trainer


def main(arguments: Sequence[str] | None = None) -> None:
    """Time both in turns of one step, and write the results."""
    parser = Parser(description="Measure the speed of training.")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="JSON Lines")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--steps", type=positive, default=20, metavar="N", help="default: 20")
    parser.add_argument("--batch-tokens", type=positive, default=1000, metavar="N")
    parser.add_argument("--rate", type=float, default=4.0)
    parser.add_argument("--peak-tflops", type=float, default=None, help="of the device")
    parser.add_argument("--device", default=None)
    options = parser.parse_args(arguments)
    base = BaseLM.load(device=options.device)
    model = ZModel.create(base)
    batches = PackedBatches(
        read_passages(options.data),
        base.tokenizer,
        BatchSettings(batch_tokens=options.batch_tokens, templates=training_templates()),
        seed=0,
    )
    settings = TrainSettings(steps=10**6, text_steps=0, ramp_steps=0, rates=(options.rate,))
    trainer = Trainer(model, batches, settings, options.output, fresh=False)
    base.add_adapter("plain", rank=model.config.rank)
    plain = plain_lora_steps(base, batches, trainer.objective.head_cost, options.batch_tokens)
    ours, source = [], []

    def our_step() -> float:
        record, seconds = timed(base, trainer.train_step)
        source.append(record["source_tokens"] / seconds)
        return float(record["work"]) / seconds

    theirs = []
    for step in range(options.steps + 2):
        rates = our_step(), _plain_rate(base, plain)
        if step >= 2:  # the first steps warm up
            ours.append(rates[0])
            theirs.append(rates[1])
    ratio = [100 * a / b for a, b in zip(ours, theirs, strict=True)]
    layers = sum(p.numel() for n, p in base.decoder.layers.named_parameters() if "lora_" not in n)
    values = {
        "ztok_work_per_second": ours,
        "lora_work_per_second": theirs,
        "share_of_lora": ratio,
        "source_tokens_per_second": source[2:],
    }
    if options.peak_tflops:
        scale = 100 * 2 * layers / (options.peak_tflops * 1e12)
        values["share_of_peak"] = [scale * rate for rate in ours]
    task = f"{options.data.stem} in {dtype_name(base.dtype)}"
    rows = [
        Row("training_speed", task, "ztok", options.rate, 0, name,
            float(np.mean(series)), bootstrap_ci(series), len(series))
        for name, series in values.items()
    ]  # fmt: skip
    print(format_table(rows))
    write_results(
        options.output,
        rows,
        seed=0,
        checkpoint="untrained",
        device=str(base.device),
        benchmark="training_speed",
        note="work: positions sent forward through the base; a backward pass counts as much",
    )


def timed(base: BaseLM, step: Callable[[], Any]) -> tuple[Any, float]:
    """What a step returns, and the seconds that it took."""
    synchronize = torch.cuda.synchronize if base.device.type == "cuda" else lambda: None
    synchronize()
    started = time.perf_counter()
    result = step()
    synchronize()
    return result, time.perf_counter() - started


def plain_lora_steps(
    base: BaseLM, batches: PackedBatches, head_cost: float, batch_tokens: int
) -> Iterator[float]:
    """Take steps of plain LoRA training; yield the compute of each."""
    parameters = base.adapter_parameters("plain")
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    weights = MasterWeights([(parameters, 5e-4)])
    stream = [token for source in batches.sources for token in source]
    row = 256
    rows = max(1, batch_tokens // row)
    at = 0
    while True:
        ids = torch.tensor(stream[at : at + rows * row], device=base.device).view(rows, row)
        at = (at + rows * row) % (len(stream) - rows * row)
        with base.adapter("plain"):
            hidden = base.decoder(input_ids=ids, use_cache=False).last_hidden_state
        logits = base.head(hidden[:, :-1]).float().flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
        torch.autograd.backward(loss)
        weights.step(1.0, 1.0)
        yield 2 * ids.numel() * (1 + head_cost)


def _plain_rate(base: BaseLM, steps: Iterator[float]) -> float:
    work, seconds = timed(base, lambda: next(steps))
    return float(work) / seconds


if __name__ == "__main__":
    run_script(main)
