"""Bits per character of exact texts: the base LLM's code, general compressors, and the limit.

    python benchmarks/lossless.py --data FILE.jsonl --output DIR

`--data` is a JSON Lines file, or a folder of them, whose records have a `context`, `text` or
`document`; several, comma-separated, are drawn from in turns. All sizes are of whole files.
`cross-entropy` is what the base LLM takes at the least: its surprisal in one pass over the whole
text, without windows and without a header. zstd and brotli are measured where their packages are
installed.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib
import lzma
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common import (
    Parser,
    add_model_options,
    load_compressor,
    names,
    positive,
    run_script,
)
from costs.corpus import TEXT_FIELDS, read_records
from ztok_rag.codec.base import BaseLM, dtype_name
from ztok_rag.codec.compressor import ZCompressor, surprisal
from ztok_rag.codec.llm_code import LosslessText, coding_base
from ztok_rag.errors import DataError
from ztok_rag.evaluation import Row, bootstrap_ci, write_results

RATE = 4.0
"""Of the Z-tokens beside which texts are coded; it changes no bit of the coded ids."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every document, and write the results."""
    options = parse(arguments)
    compressor = load_compressor(options)
    base = coding_base(compressor.model.base)
    packers = general_compressors()
    rows: list[Row] = []
    sizes: dict[str, list[float]] = {}
    with tqdm(total=sum(options.characters), unit="character") as bar:
        for number, (source, text) in enumerate(choose(options)):
            task = f"{source} {number}, {len(text)} characters"
            measured = measure(text, compressor, base, packers)
            for arm, bits in measured.items():
                if arm.startswith("ms"):
                    rows.append(row(task, "llm", arm, [bits], options))
                else:
                    rows.append(row(task, arm, "bits_per_character", [bits], options))
                sizes.setdefault(arm, []).append(bits)
            bar.update(len(text))
    for arm, values in sizes.items():
        if not arm.startswith("ms"):
            rows.append(row("average", arm, "bits_per_character", values, options))
    share = [100 * a / b for a, b in zip(sizes["llm"], sizes["cross-entropy"], strict=True)]
    rows.append(row("average", "llm", "percent_of_cross_entropy", share, options))
    output = options.output or Path("results") / "lossless"
    note = (
        "Beginnings of documents drawn by seed; whole files, headers included. ms_per_token are of "
        "coding and decoding, one thread."
    )
    write_results(
        output,
        rows,
        seed=options.seed,
        checkpoint=str(options.checkpoint or "default"),
        device="cpu",
        fingerprint=compressor.fingerprint,
        benchmark="lossless",
        note=note,
        dtype=dtype_name(base.dtype),
        threads=1,
    )
    for each in rows:
        print(f"{each.task:40} {each.arm:14} {each.metric:26} {each.score:8.3f}")
    print(f"{note}\nWritten: {output}/results.json")


def choose(options: argparse.Namespace) -> list[tuple[str, str]]:
    """The beginning of one document for each length asked for, and the data set it is of.

    Raises:
        DataError: no document is long enough.
    """
    generator = np.random.default_rng(options.seed)
    sources = {}
    for path in map(Path, options.data):
        records = read_records(path)
        texts = [str(next(r[f] for f in TEXT_FIELDS if r.get(f))).strip() for r in records]
        name = path.name if path.is_dir() else path.parent.name
        sources[name] = [texts[i] for i in generator.permutation(len(texts))]
    chosen: list[tuple[str, str]] = []
    taken: set[str] = set()
    for number, length in enumerate(options.characters):
        name = list(sources)[number % len(sources)]
        fitting = [t for t in sources[name] if len(t) >= length and t not in taken]
        if not fitting:
            raise DataError(
                f"no document of {name} has {length} characters; give smaller --characters."
            )
        taken.add(fitting[0])
        chosen.append((name, fitting[0][:length].rstrip()))
    return chosen


def measure(
    text: str,
    compressor: ZCompressor,
    base: BaseLM,
    packers: dict[str, Callable[[bytes], bytes]],
) -> dict[str, float]:
    """Bits per character by each arm, and milliseconds per token of the LLM's code."""
    (z,) = compressor.compress([text], RATE)
    started = time.perf_counter()
    coded = LosslessText.encode(text, z.ids, base, RATE)
    ms = 1e3 * (time.perf_counter() - started) / len(z.ids)
    if coded is None or LosslessText.from_bytes(coded.to_bytes()) != coded:
        raise DataError("this machine does not decode what it codes.")
    found = {arm: pack(text.encode()) for arm, pack in packers.items()}
    found |= {"llm": coded.to_bytes(), "static code": z.to_bytes()}
    bits = {arm: 8 * len(data) / len(text) for arm, data in found.items()}
    limit = cross_entropy(base, z.ids.tolist()) / len(text)
    return {**bits, "cross-entropy": limit, "ms_per_token": ms}


@torch.inference_mode()
def cross_entropy(base: BaseLM, ids: list[int]) -> float:
    """Bits that the base takes for a text in one pass, as far back as it sees."""
    tokens = torch.tensor([[base.start_token, *ids]])
    if tokens.shape[1] > base.max_positions:
        raise DataError("a document is longer than the base reads; give smaller --characters.")
    with base.adapter(None):
        states = base.decoder(inputs_embeds=base.embed(tokens), use_cache=False).last_hidden_state
    nats, _ = surprisal(states[0, :-1], tokens[0, 1:], base.head)
    return float(nats.sum() / np.log(2))


def general_compressors() -> dict[str, Callable[[bytes], bytes]]:
    """By name and level; those that are not installed are left out."""
    packers: dict[str, Callable[[bytes], bytes]] = {
        "gzip -9": lambda data: gzip.compress(data, 9),
        "xz -9": lambda data: lzma.compress(data, preset=9),
    }
    with contextlib.suppress(ImportError):
        packers["zstd -19"] = importlib.import_module("zstandard").ZstdCompressor(level=19).compress
    with contextlib.suppress(ImportError):
        brotli = importlib.import_module("brotli")
        packers["brotli -11"] = lambda data: brotli.compress(data, quality=11)
    return packers


def row(
    task: str, arm: str, metric: str, values: Sequence[float], options: argparse.Namespace
) -> Row:
    interval = bootstrap_ci(values, seed=options.seed)
    score = float(np.mean(values))
    return Row("lossless", task, arm, None, 0, metric, score, interval, len(values))


def lengths(text: str) -> list[int]:
    """Comma-separated whole numbers of at least 1, as an argument type."""
    return [positive(part) for part in names(text)]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = Parser(description="Measure lossless compression.")
    parser.add_argument(
        "--data", type=names, required=True, metavar="PATH,PATH",
        help="JSON Lines of records with context, text or document, or folders of such files",
    )  # fmt: skip
    parser.add_argument(
        "--characters", type=lengths, default=[1000, 1500, 1000, 5000, 1000], metavar="N,M",
        help="length of each document, from the data in turns (default: 1000,1500,1000,5000,1000)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=None, metavar="DIR")
    add_model_options(parser)
    parser.set_defaults(device="cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_script(main)
