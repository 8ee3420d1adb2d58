"""Ablations: train variants with equal compute from the same text reader, and compare them.

    python benchmarks/ablations.py --data DIR --reader CHECKPOINT --output DIR

`DIR` holds the training and development files. The text reader is the adapter `text` of a
checkpoint. In each variant, the adapters of compressor and reader start as copies of the text
reader, and the gate and the quantizer are fitted. Then the variant is trained with a budget of
compute, counted in positions sent through the base LLM. It is scored, teacher-forced, on answers
of SQuAD's development set and on the text of Wikipedia passages that were not trained on. With
`--work 0` nothing is trained, which compares how well the variants keep what the text reader
needs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from common import Parser, count, names, positive, run_script
from variants import (
    ContinuousModel,
    MeanPoolModel,
    MemoryTokenModel,
    SurprisalModel,
    UniformModel,
)
from ztok_rag.codec.base import BaseLM
from ztok_rag.codec.model import ZModel
from ztok_rag.codec.prompts import training_templates
from ztok_rag.codec.sequence import write_atomic
from ztok_rag.errors import DataError
from ztok_rag.evaluation import Row, bootstrap_ci, format_table, sample, write_results
from ztok_rag.evaluation.intervals import ratio
from ztok_rag.training.batches import BatchSettings, PackedBatches
from ztok_rag.training.examples import Kind
from ztok_rag.training.fit import fit_heads
from ztok_rag.training.held_out import held_out_batches, score_tokens
from ztok_rag.training.objective import TrainSettings
from ztok_rag.training.passages import Passage, read_passages
from ztok_rag.training.run import load_data
from ztok_rag.training.trainer import Trainer

RATE = 4.0
FIXED = {"text_steps": 0, "ramp_steps": 0, "rates": (RATE,)}


@dataclass(frozen=True)
class Variant:
    """One row of the ablation table.

    Attributes:
        group: what is varied.
        what: the difference from the default, in a few words.
        model: class of the model.
        config: fields of `ZConfig`.
        train: fields of `TrainSettings`.
        batch: fields of `BatchSettings`.
    """

    group: str
    what: str
    model: type[ZModel] = ZModel
    config: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    batch: dict[str, Any] = field(default_factory=dict)


def _layers(compressor: int, *inject: int) -> dict[str, Any]:
    return {"compressor_layers": compressor, "inject_layers": inject}


VARIANTS = {
    "default": Variant(
        "all",
        "1 anchor + 2 residual codes, acting at layers 6, 13 and 20; compressor of 20 layers; "
        "learned allocation; rate 4 throughout",
    ),
    "layers-10": Variant("layers", "compressor of 10 layers", config=_layers(10, 3, 6, 10)),
    "layers-30": Variant("layers", "compressor of 30 layers", config=_layers(30, 6, 13, 20)),
    "act-at-input": Variant(
        "acting layers", "at the input", config=_layers(20, 0), train={"alignment_weight": 0.0}
    ),
    "act-at-20": Variant("acting layers", "at layer 20", config=_layers(20, 20)),
    "act-at-5": Variant(
        "acting layers", "at layers 4, 8, 12, 16 and 20", config=_layers(20, 4, 8, 12, 16, 20)
    ),
    "continuous": Variant("span vector", "residual not quantized", ContinuousModel),
    "continuous-8": Variant(
        "span vector",
        "residual of 4 times the dimensions, not quantized",
        ContinuousModel,
        config={"residual_depth": 8},
    ),
    "mean-pool": Variant("span vector", "mean pool, residual not quantized", MeanPoolModel),
    "memory": Variant(
        "span vector",
        "memory tokens, continuous",
        MemoryTokenModel,
        config={"residual_depth": 0, "inject_layers": ()},
    ),
    "uniform": Variant("allocation", "uniform", UniformModel),
    "surprisal": Variant("allocation", "surprisal", SurprisalModel),
    "root": Variant(
        "allocation", "learned, times the root of surprisal", config={"surprisal_power": 0.5}
    ),
    "both": Variant("allocation", "learned, times surprisal", config={"surprisal_power": 1.0}),
    "depth-1": Variant("depth", "1 anchor", config={"residual_depth": 0, "inject_layers": ()}),
    "depth-2": Variant("depth", "1 anchor + 1 residual code", config={"residual_depth": 1}),
    "depth-4": Variant("depth", "1 anchor + 3 residual codes", config={"residual_depth": 3}),
    "depth-8": Variant("depth", "1 anchor + 7 residual codes", config={"residual_depth": 7}),
    "anchors-2": Variant(
        "depth", "2 anchors + 1 residual code", config={"anchors": 2, "residual_depth": 1}
    ),
    "curriculum": Variant("curriculum", "rate raised from 1 over half of the steps"),
    "no-alignment": Variant("losses", "no alignment", train={"alignment_weight": 0.0}),
    "answers": Variant("losses", "no reconstruction", batch={"reconstruct": 0.0}),
    "questions": Variant("losses", "+ words of questions", train={"question_weight": 0.2}),
    "distil": Variant("losses", "answers half distilled", train={"distillation": 0.5}),
    "distil-all": Variant(
        "losses",
        "all distilled, with questions",
        train={"distillation": 1.0, "question_weight": 0.2},
    ),
    "reconstruct": Variant(
        "losses",
        "reconstruction weighs 1",
        train={"reconstruction_weight": 1.0},
        batch={"reconstruct": 0.6},
    ),
    "rank-96": Variant("adapters", "rank 96", config={"rank": 96}),
    "lr-1e-3": Variant("optimizer", "peak learning rate 1e-3", train={"lr": 1e-3}),
}

METRICS = {
    "answer_nats": (Kind.ANSWER, "nats"),
    "answer_accuracy": (Kind.ANSWER, "right"),
    "reconstruction_nats": (Kind.RECONSTRUCTION, "nats"),
    "reconstruction_accuracy": (Kind.RECONSTRUCTION, "right"),
    "continuation_nats": (Kind.CONTINUATION, "nats"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the variants that have no result yet, and write the table."""
    options = _parse(arguments)
    passages, answered, repeated = load_passages(options)
    runs: dict[str, Any] = {}
    path = options.output / "runs.json"
    if path.exists():
        runs = json.loads(path.read_text(encoding="utf-8"))
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.variants:
        if name in runs:
            continue
        print(f"{name}: {VARIANTS[name].what}", flush=True)
        runs[name], _ = train_and_score(name, passages, answered + repeated, options)
        write_atomic(path, json.dumps(runs).encode())
        print(json.dumps({metric: round(_score(runs[name], metric), 3) for metric in METRICS}))
    rows = _rows(runs, options.seed)
    print(format_table(rows))
    write_atomic(options.output / "table.md", markdown_table(rows).encode())
    write_results(
        options.output,
        rows,
        seed=options.seed,
        checkpoint=str(options.reader),
        device=str(options.device or "auto"),
        work=options.work,
        note="Token-by-token predictions, teacher-forced, by passage; nats are per token.",
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description="Compare variants of the model and its training.")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--reader", type=Path, required=True, metavar="CHECKPOINT")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--variants", type=names, default=list(VARIANTS), metavar="A,B", help="default: all"
    )
    parser.add_argument(
        "--work", type=count, default=100_000, metavar="N",
        help="compute per variant, in positions sent through the base (default: 100000)",
    )  # fmt: skip
    parser.add_argument("--dev", type=positive, default=48, metavar="N", help="passages of each")
    parser.add_argument("--batch-tokens", type=positive, default=1000, metavar="N")
    parser.add_argument("--device", default=None)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.variants if name not in VARIANTS]:
        raise DataError(f"unknown variant {unknown[0]!r}; there are {', '.join(VARIANTS)}.")
    return options


def load_passages(
    options: argparse.Namespace,
) -> tuple[list[Passage], list[Passage], list[Passage]]:
    """Passages to train on, and development passages for answers and for reconstruction."""
    passages = load_data(
        [f"{options.data}/squad/train.jsonl", f"{options.data}/text/wiki_passages.jsonl:0.1"],
        options.seed,
    )
    trained = {passage.text for passage in passages}
    wiki = read_passages(options.data / "text" / "wiki_passages.jsonl")
    answered = sample(read_passages(options.data / "squad" / "dev.jsonl"), options.dev, 0)
    repeated = sample([p for p in wiki if p.text not in trained], options.dev, 0)
    return passages, answered, repeated


def train_and_score(
    name: str, passages: Sequence[Passage], dev: Sequence[Passage], options: argparse.Namespace
) -> tuple[dict[str, Any], ZModel]:
    """Train a variant; its record, with the scores, and the model."""
    variant = VARIANTS[name]
    torch.manual_seed(options.seed)
    base = BaseLM.load(device=options.device)
    config = {
        "adapters": ("compress", "read", "text"),
        "surprisal_power": 0.0,
        **variant.config,
    }
    model = variant.model.create(base, **config)
    text = load_file(options.reader / "text.safetensors")
    model.load_adapter("text", _with_rank(text, model.config.rank))
    for adapter in ("read", "compress"):
        model.copy_adapter("text", adapter)
    batch_settings = dataclasses.replace(
        BatchSettings(
            batch_tokens=options.batch_tokens,
            max_source_tokens=256 + 96,
            continuation=1.0,
            together=(1, 1, 1, 1, 1, 2),
            distractors=0,
            focus=0.0,
            templates=training_templates(),
        ),
        **variant.batch,
    )
    batches = PackedBatches(passages, base.tokenizer, batch_settings, options.seed)
    fit_heads(model, batches.sample_windows(96))
    settings = TrainSettings(steps=10**6, seed=options.seed, **{**FIXED, **variant.train})
    folder = options.output / ".run"
    shutil.rmtree(folder, ignore_errors=True)
    trainer = Trainer(model, batches, settings, folder, fresh=False)
    work, started = 0.0, time.monotonic()
    if options.work:
        for _ in range(4):
            work += trainer.train_step()["work"]
        # The schedule needs the number of steps that the compute allows.
        steps = round(options.work / (work / 4))
        trainer.settings = dataclasses.replace(settings, steps=steps)
        if name == "curriculum":
            trainer.settings = dataclasses.replace(trainer.settings, ramp_steps=steps // 2)
    losses = []
    while work < options.work:
        record = trainer.train_step()
        work += record["work"]
        losses.append(record["answer"])
        print(f"\r{work / options.work:4.0%} {record['answer']}", end="", flush=True)
    print()
    shutil.rmtree(folder, ignore_errors=True)
    scores = score_tokens(trainer.objective, held_out_batches(dev, base.tokenizer), RATE)
    record = {
        "group": variant.group,
        "what": variant.what,
        "steps": trainer.step,
        "work": round(work),
        "seconds": round(time.monotonic() - started),
        "source_tokens": trainer.source_tokens,
        "training_answer_nats": [round(x, 4) for x in losses if x is not None],
        "scores": {
            kind.name: {key: np.round(value, 3).tolist() for key, value in vars(part).items()}
            for kind, part in scores.items()
        },
    }
    return record, model


def _with_rank(adapter: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """The LoRA adapter with a higher rank and the same function."""
    padded = {}
    for name, tensor in adapter.items():
        first = "lora_A" in name
        more = rank - tensor.shape[0 if first else 1]
        if first:
            added = tensor.float().std() * torch.randn(more, tensor.shape[1])
        else:
            added = torch.zeros(tensor.shape[0], more)
        padded[name] = torch.cat([tensor.float(), added], dim=0 if first else 1)
    return padded


def _totals(run: dict[str, Any], metric: str) -> np.ndarray:
    """`[2, passages]`: the sum of the metric over each passage's tokens, and their number."""
    kind, key = METRICS[metric]
    scores = run["scores"][kind.name]
    scale = 100.0 if key == "right" else 1.0
    return np.array([scale * np.array(scores[key]), scores["tokens"]])


def _score(run: dict[str, Any], metric: str) -> float:
    total, tokens = _totals(run, metric).sum(axis=1)
    return float(total / tokens)


def _difference(drawn: np.ndarray) -> np.ndarray:
    """The difference of two ratios, given `[resamples, n, 4]`: dividend, divisor, and again."""
    return np.asarray(ratio(drawn[..., :2]) - ratio(drawn[..., 2:]))


def _rows(runs: dict[str, Any], seed: int) -> list[Row]:
    """Scores of each variant, and paired differences from the default."""
    rows = []
    for name, run in runs.items():
        for metric in METRICS:
            own = _totals(run, metric)
            found = {metric: (_score(run, metric), bootstrap_ci(own.T, seed=seed, statistic=ratio))}
            if name != "default" and "default" in runs:
                other = _totals(runs["default"], metric)
                score = _score(run, metric) - _score(runs["default"], metric)
                pairs = np.concatenate([own, other]).T
                interval = bootstrap_ci(pairs, seed=seed, statistic=_difference)
                found[f"{metric}_minus_default"] = score, interval
            for label, (score, interval) in found.items():
                rows.append(
                    Row("ablations", run["group"], name, RATE, 0, label, score,
                        interval, own.shape[1], what=run["what"])
                )  # fmt: skip
    return rows


def markdown_table(rows: Sequence[Row]) -> str:
    """A line per variant: its scores, with the interval of the difference in brackets."""
    metrics = [metric for metric in METRICS if any(row.metric == metric for row in rows)]
    scores = {(row.arm, row.metric): row for row in rows}
    lines = ["| variant | " + " | ".join(m.replace("_", " ") for m in metrics) + " |"]
    lines.append("| --- |" + " --- |" * len(metrics))
    for name in dict.fromkeys(row.arm for row in rows):
        cells = []
        for metric in metrics:
            cell = f"{scores[name, metric].score:.2f}"
            if difference := scores.get((name, f"{metric}_minus_default")):
                low, high = difference.ci95
                cell += f" [{low:+.2f}, {high:+.2f}]"
            cells.append(cell)
        what = scores[name, metrics[0]].what
        lines.append(f"| {what} (`{name}`) | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_script(main)
