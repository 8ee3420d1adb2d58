"""Throughput of compression, against a forward pass of the base LLM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from tqdm import tqdm
from transformers import DynamicCache

from costs.bench import Bench, in_turns
from ztok_rag.codec.base import BaseLM
from ztok_rag.codec.compressor import batches_by_size, best_batch_tokens
from ztok_rag.evaluation import Row


def measure_compression(bench: Bench, bar: tqdm[Any]) -> list[Row]:
    """Source tokens per second of compression, and of the plain base LLM over the same batches."""
    base, compressor = bench.base, bench.compressor
    texts = bench.corpus.chunks[: bench.options.windows]
    batch_tokens = bench.options.batch_tokens or best_batch_tokens(base.device)
    ids: list[list[int]] = compressor.tokenizer(texts, add_special_tokens=False)["input_ids"]
    batches = [
        padded([ids[i] for i in batch], base.device)
        for batch in batches_by_size([len(row) for row in ids], batch_tokens)
    ]
    works: dict[str, Callable[[], Any]] = {
        "forward": lambda: run_base(base, batches, prefill=False),
        "prefill": lambda: run_base(base, batches, prefill=True),
    }
    for rate in bench.rates:
        works[f"rate {rate:g}"] = partial(
            compressor.compress, texts, rate, batch_tokens=batch_tokens
        )
    works["all rates"] = partial(compressor.compress_all_rates, texts, batch_tokens=batch_tokens)
    times = in_turns(base, works, bench.repeats, bar)
    tokens = sum(map(len, ids))
    sizes = {"windows": len(texts), "source_tokens": tokens, "batch_tokens": batch_tokens}
    rows = []
    for name, taken in times.items():
        plain = name in ("forward", "prefill")
        arm, rate = ("base" if plain else "ztok-store"), 1.0
        if name.startswith("rate "):
            arm, rate = "ztok", float(name.removeprefix("rate "))
        metric = f"{name if plain else 'compress'}_tokens_per_second"
        rates = [tokens / t for t in taken]
        rows.append(bench.row("compress", arm, rate, metric, rates, **sizes))
        for other in ("forward", "prefill") if not plain else ():
            shares = [100 * b / a for a, b in zip(taken, times[other], strict=True)]
            rows.append(bench.row("compress", arm, rate, f"share_of_{other}", shares, **sizes))
    return rows


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, list[int]]:
    """Token ids `[batch, n]`, padded on the right, and the number of tokens in each row."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
    return ids.to(device), [len(row) for row in rows]


@torch.inference_mode()
def run_base(
    base: BaseLM, batches: Sequence[tuple[torch.Tensor, list[int]]], *, prefill: bool
) -> None:
    """Run the plain base LLM over batches. A prefill also fills a KV cache and predicts a token."""
    with base.adapter(None):
        for ids, lengths in batches:
            ends = torch.tensor(lengths, device=ids.device)
            mask = torch.arange(ids.shape[1], device=ids.device)[None] < ends[:, None]
            cache = DynamicCache(config=base.model.config) if prefill else None
            hidden = base.decoder(
                input_ids=ids, attention_mask=mask.long(), past_key_values=cache, use_cache=prefill
            ).last_hidden_state
            if prefill:
                base.head(hidden[torch.arange(len(ids), device=ids.device), ends - 1])
