"""A model that cuts words, in the place of the real one: tests with it are about the harness."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import longbench
import peers.text
import rag_qa
from ztok_rag.codec.nested import FINEST, NestedSequence
from ztok_rag.codec.sequence import ZSequence

FINGERPRINT = "0123456789abcdef"

TEMPLATES = {
    "hotpotqa": "Passages:\n{context}\nQuestion: {input}\nAnswer:",
    "lcc": "{context}Next:",
}


class WordTokenizer:
    """Words and white space as tokens."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[tuple[int, int]]]:
        return {"offset_mapping": [m.span() for m in re.finditer(r"\s*\S+|\s+", text)]}

    def encode(self, text: str, **_: Any) -> list[int]:
        return list(range(len(self(text)["offset_mapping"])))


class StandInReader:
    """Answers with the last word before the question, and records what it was asked."""

    max_positions = 400
    adapters = ("compress", "read")

    def __init__(self) -> None:
        self.calls: list[tuple[str | None, list[Any]]] = []
        self.fail_after = math.inf

    def count_tokens(self, prompt: Any) -> int:
        parts = [prompt] if isinstance(prompt, str) else prompt
        tokens = WordTokenizer()
        return sum(len(p) if isinstance(p, ZSequence) else len(tokens.encode(p)) for p in parts)

    def generate(
        self,
        prompts: Sequence[Any],
        *,
        max_new_tokens: int,
        adapter: str | None,
        batch_size: int,
    ) -> list[str]:
        if len(self.calls) >= self.fail_after:
            raise KeyboardInterrupt
        assert all(self.count_tokens(p) + max_new_tokens <= self.max_positions for p in prompts)
        self.calls.append((adapter, list(prompts)))
        return ["Paris" if adapter is None else "Rome" for _ in prompts]

    def measure(self, prompt: Any, *, adapter: str | None) -> Any:
        return SimpleNamespace(context_tokens=1, prefill_ms=2.0, ttft_ms=3.0, kv_bytes=4)


class StandInCompressor:
    """One Z-token per `rate` words."""

    fingerprint = FINGERPRINT

    def __init__(self) -> None:
        self.reader = StandInReader()
        self.model = SimpleNamespace(state=lambda: ({}, {}))
        self.tokenizer = WordTokenizer()
        self.texts: list[str] = []

    def compress_nested(self, texts: Sequence[str]) -> list[NestedSequence]:
        made = self.compress(texts, FINEST)
        return [NestedSequence(z, np.full(len(z), 8, np.uint8)) for z in made]

    def compress(self, texts: Sequence[str], rate: float) -> list[ZSequence]:
        out = []
        self.texts += texts
        for text in texts:
            tokens = len(self.tokenizer.encode(text))
            n = math.ceil(tokens / rate)
            ends = np.linspace(0, len(text), n + 1).astype(np.int64)
            spans = np.stack([ends[:-1], ends[1:]], axis=1)
            out.append(ZSequence(np.ones((n, 2), np.uint16), spans, (n,), tokens, FINGERPRINT))
        return out


def install(monkeypatch: pytest.MonkeyPatch) -> StandInCompressor:
    """Let the benchmarks run with a stand-in and with embeddings of bags of words."""
    stand_in = StandInCompressor()

    def embed(texts: Sequence[str]) -> Any:
        vectors = np.full((len(texts), 257), 1e-3, np.float32)
        for row, text in enumerate(texts):
            for word in set(re.findall(r"\w+", text.lower())):
                vectors[row, sum(word.encode()) % 257] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    for script in (longbench, rag_qa):
        monkeypatch.setattr(script, "load_compressor", lambda options: stand_in)
    for module in (longbench, rag_qa, peers.text):
        monkeypatch.setattr(module, "embed_texts", embed)
        monkeypatch.setattr(module, "embed_queries", embed)
    return stand_in


def write_longbench(folder: Path) -> None:
    """Five questions on one long text, and one piece of code, in LongBench's format."""
    folder.mkdir()
    long = "\n\n\n".join(f"Topic {i} is about word{i} and more of it. " * 8 for i in range(9))
    records = [
        {
            "_id": f"h{i}",
            "input": f"What is topic {i}?",
            "context": long,
            "answers": ["Rome" if i % 2 else "Paris"],
            "all_classes": None,
        }
        for i in range(5)
    ]
    write(folder / "hotpotqa.jsonl", records)
    write(
        folder / "lcc.jsonl",
        [{"input": "", "context": "def f(x):\n    y = x\n", "answers": ["    return y"]}],
    )
    (folder / "dataset2prompt.json").write_text(json.dumps(TEMPLATES))
    (folder / "dataset2maxlen.json").write_text(json.dumps({"hotpotqa": 32, "lcc": 64}))


def write(path: Path, records: Sequence[object]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
