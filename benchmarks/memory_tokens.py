"""Z-tokens against continuous memory tokens (ICAE, arXiv 2307.06945), at equal compute.

    python benchmarks/memory_tokens.py --data DIR --output DIR

`DIR` holds the training and development files. Two variants of `ablations.py`, `root` and
`memory`, start from the same text reader and train on the same batches at rate 4, with the same
compute. Compute is counted in positions sent through the base LLM, without those of memory tokens
in the compressor. Both then predict answers and texts of development data token by token, and
answer its questions, scored by token F1.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

import ablations
import plots
from common import Parser, count, positive, run_script
from ztok_rag.codec.compressor import ZCompressor
from ztok_rag.codec.model import DEFAULT_CHECKPOINT, ZModel
from ztok_rag.codec.prompts import QA_TEMPLATE
from ztok_rag.codec.sequence import write_atomic
from ztok_rag.evaluation import Row, bootstrap_ci, format_table, write_results
from ztok_rag.evaluation.intervals import ratio
from ztok_rag.evaluation.metrics import token_f1
from ztok_rag.training.examples import Kind
from ztok_rag.training.passages import Passage

ARMS = {"ztok": "root", "memory": "memory"}
"""Name in the results, and name of the variant."""

ACCURACIES = {"answer_accuracy": Kind.ANSWER, "reconstruction_accuracy": Kind.RECONSTRUCTION}
TASK = "squad/dev"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and score what has no result yet, and write the comparison."""
    options = _parse(arguments)
    passages, answered, repeated = ablations.load_passages(options)
    path = options.output / "runs.json"
    options.output.mkdir(parents=True, exist_ok=True)
    runs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for arm, variant in ARMS.items():
        if arm not in runs:
            print(f"{arm}: {ablations.VARIANTS[variant].what}", flush=True)
            runs[arm] = train(variant, passages, answered, repeated, options)
            write_atomic(path, json.dumps(runs).encode())
    rows = make_rows(runs, options.seed)
    print(format_table(rows))
    results = write_results(
        options.output,
        rows,
        seed=options.seed,
        checkpoint="default" if options.reader == DEFAULT_CHECKPOINT else str(options.reader),
        device=str(options.device or "auto"),
        benchmark="memory_tokens",
        work=options.work,
        note=f"Trained for {options.work} positions each, at rate {ablations.RATE:g}. Accuracies "
        "are teacher-forced, intervals by passage; F1 is of generated answers, by question.",
    )
    plots.draw_memory(results["rows"], options.output / "memory_tokens.png")
    print(f"Written: {options.output}/results.json, runs.json, memory_tokens.png")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description="Compare Z-tokens with continuous memory tokens.")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--reader", type=Path, default=DEFAULT_CHECKPOINT, metavar="CHECKPOINT",
        help="checkpoint with the text reader that both start from (default: the shipped)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--work", type=count, default=100_000, metavar="N",
        help="compute of each, in positions sent through the base (default: 100000)",
    )  # fmt: skip
    parser.add_argument(
        "--dev", type=positive, default=48, metavar="N", help="passages of each (default: 48)"
    )
    parser.add_argument("--batch-tokens", type=positive, default=1000, metavar="N")
    parser.add_argument("--device", default=None, help="default: cuda if there is one, else cpu")
    parser.add_argument("--seed", type=count, default=0, help="default: 0")
    return parser.parse_args(arguments)


def train(
    name: str,
    passages: Sequence[Passage],
    answered: Sequence[Passage],
    repeated: Sequence[Passage],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Train a variant; its record, with the F1 of its answers and its stored bytes."""
    record, model = ablations.train_and_score(name, passages, [*answered, *repeated], options)
    model.eval()
    record["f1"] = [
        round(100 * f1, 3)
        for passage in tqdm(answered, unit="passage")
        for f1 in answer_scores(model, passage)
    ]
    record["bytes_per_source_token"] = stored_bytes(model, [p.text for p in answered])
    return record


@torch.inference_mode()
def answer_scores(model: ZModel, passage: Passage, *, max_new_tokens: int = 32) -> list[float]:
    """Token F1, 0 to 1, of an answer to each question, read from the compressed passage."""
    base, tokenizer = model.base, model.base.tokenizer

    def embed(text: str) -> torch.Tensor:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return model.embed_text(torch.tensor(ids, device=base.device))

    ids = tokenizer(passage.text, add_special_tokens=False, verbose=False)["input_ids"]
    size = model.config.window
    windows = [ids[start : start + size] for start in range(0, len(ids), size)]
    sink = model.embed_text(torch.tensor([model.sink], device=base.device))
    context = torch.cat([sink, model.encode(windows, ablations.RATE).embeddings])
    _, tail = QA_TEMPLATE.split("{context}")
    scores = []
    for question, answers in passage.questions:
        inputs = torch.cat([context, embed(tail.format(question=question))]).unsqueeze(0)
        embeddings, added = model.split(inputs)
        with base.adapter("read"), model.injecting(added):
            output = base.model.generate(
                inputs_embeds=embeddings,
                attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long, device=base.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.eos_token_id,
            )
        scores.append(token_f1(tokenizer.decode(output[0], skip_special_tokens=True), answers))
    return scores


def stored_bytes(model: ZModel, texts: Sequence[str]) -> float:
    """Bytes on disk per source token, of codes or of 16-bit vectors."""
    count_tokens = ZCompressor(model).count_tokens
    if model.config.residual_depth:
        zs = ZCompressor(model).compress(texts, ablations.RATE)
        return sum(len(z.to_bytes()) for z in zs) / sum(z.source_tokens for z in zs)
    tokens = [count_tokens(text) for text in texts]
    vectors = [max(1, round(n / ablations.RATE)) for n in tokens]
    return 2 * model.base.hidden_size * sum(vectors) / sum(tokens)


def make_rows(runs: dict[str, Any], seed: int) -> list[Row]:
    """Scores of both, and paired differences on the same passages and questions."""
    rows = []

    def add(arm: str, metric: str, value: float, ci: tuple[float, float], n: int) -> None:
        run = runs[arm]
        spent = {name: run[name] for name in ("work", "steps", "seconds", "what")}
        rows.append(
            Row("memory_tokens", TASK, arm, ablations.RATE, 1, metric, value, ci, n,
                bytes_per_source_token=run["bytes_per_source_token"], **spent)
        )  # fmt: skip

    for arm, run in runs.items():
        add(
            arm, "f1", float(np.mean(run["f1"])), bootstrap_ci(run["f1"], seed=seed), len(run["f1"])
        )
        for metric, kind in ACCURACIES.items():
            right, tokens = _right(run, kind)
            low, high = bootstrap_ci(np.stack([right, tokens], 1), seed=seed, statistic=ratio)
            share = 100 * right.sum() / tokens.sum()
            add(arm, metric, float(share), (100 * low, 100 * high), len(right))
    ours, other = runs["ztok"], runs["memory"]
    differences = np.subtract(ours["f1"], other["f1"]).tolist()
    interval = bootstrap_ci(differences, seed=seed)
    add("ztok", "f1_minus_memory", float(np.mean(differences)), interval, len(differences))
    for metric, kind in ACCURACIES.items():
        (right, tokens), (right_other, _) = _right(ours, kind), _right(other, kind)
        # The tokens to predict are the same, so the difference is a ratio too.
        difference = 100 * (right - right_other).sum() / tokens.sum()
        pairs = np.stack([right - right_other, tokens], axis=1)
        low, high = bootstrap_ci(pairs, seed=seed, statistic=ratio)
        scaled = (100 * low, 100 * high)
        add("ztok", f"{metric}_minus_memory", float(difference), scaled, len(right))
    return rows


def _right(run: dict[str, Any], kind: Kind) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Number of tokens predicted right, and of all tokens, by passage `[n]`."""
    scores = run["scores"][kind.name]
    return np.array(scores["right"], float), np.array(scores["tokens"], float)


if __name__ == "__main__":
    run_script(main)
