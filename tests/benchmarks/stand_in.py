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
from ztok_rag.codec.compressed_text import CompressedText
from ztok_rag.codec.sequence import ZSequence
from ztok_rag.codec.token_code import TokenCode

FINGERPRINT = "0123456789abcdef"
CODE = TokenCode.uniform(256)

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
    model = SimpleNamespace(selector=None, finder=None, tells_places=False)

    def __init__(self) -> None:
        self.calls: list[tuple[str | None, list[Any]]] = []
        self.asked: list[tuple[bool, int]] = []
        self.fail_after = math.inf

    def count_tokens(self, prompt: Any, *, adapter: str | None = None) -> int:
        parts = [prompt] if isinstance(prompt, str) else prompt
        tokens = WordTokenizer()
        return sum(len(p) if isinstance(p, ZSequence) else len(tokens.encode(p)) for p in parts)

    def generate(
        self,
        prompts: Sequence[Any],
        *,
        likely: Sequence[Any],
        max_new_tokens: int,
        adapter: str | None,
        batch_size: int,
        ask_first: bool,
        min_new_tokens: int,
        copy: bool | None,
    ) -> list[str]:
        if len(self.calls) >= self.fail_after:
            raise KeyboardInterrupt
        assert len(likely) == len(prompts) and copy is None
        assert all(self.count_tokens(p) + max_new_tokens <= self.max_positions for p in prompts)
        self.calls.append((adapter, list(prompts)))
        self.asked.append((ask_first, min_new_tokens))
        return ["Paris" if adapter is None else "Rome" for _ in prompts]

    def measure(self, prompt: Any, *, adapter: str | None) -> Any:
        return SimpleNamespace(context_tokens=1, prefill_ms=2.0, ttft_ms=3.0, kv_bytes=4)


class StandInCompressor:
    """Words as tokens, all of like weight."""

    fingerprint = FINGERPRINT
    slots = 16

    def __init__(self) -> None:
        self.reader = StandInReader()
        self.model = SimpleNamespace(state=lambda: ({}, {}), finder=None)
        self.tokenizer = WordTokenizer()
        self.texts: list[str] = []

    def count_tokens(self, text: str) -> int:
        return len(self.tokenizer.encode(text))

    def compress_all_rates(self, texts: Sequence[str]) -> list[CompressedText]:
        self.texts += texts
        return [self._compress(text) for text in texts]

    def compress(self, texts: Sequence[str], rate: float) -> list[ZSequence]:
        return [self._compress(text).at(rate, self.slots) for text in texts]

    def _compress(self, text: str) -> CompressedText:
        starts = [start for start, _ in self.tokenizer(text)["offset_mapping"]]
        return CompressedText(
            ids=np.arange(len(starts)) % 256,
            levels=np.full(len(starts), 3, np.uint8),
            starts=np.array(starts),
            characters=len(text),
            fingerprint=FINGERPRINT,
            digest=bytes(8),
            code=CODE,
        )


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
