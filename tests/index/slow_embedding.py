"""What tests on Ray share with processes of their own: a slow embedding model, a tiny checkpoint.

usage: python -m tests.index.slow_embedding CHECKPOINT INDEX LOG
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from llama_index.core import Document
from llama_index.core.bridge.pydantic import Field
from llama_index.core.embeddings import MockEmbedding

from tests.training.tiny_base import passages, tiny_base, tiny_model
from ztok_rag import ZCompressor, ZTokenIndex
from ztok_rag.codec.base import BaseLM
from ztok_rag.codec.model import ZModel
from ztok_rag.index.distributed import RayEngine

BLOCK = 3
ENGINE = RayEngine(workers=2, cores=1, block=BLOCK)


class SlowEmbedding(MockEmbedding):
    """Vectors of the text, without a model; each call is written to a file."""

    log: str = Field(default="")
    seconds: float = Field(default=0.0)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"embed_dim": 8, "embed_batch_size": BLOCK, **kwargs})

    def _vector(self, text: str) -> list[float]:
        return [1.0 + sum(map(ord, text[i :: self.embed_dim])) % 97 for i in range(self.embed_dim)]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        if self.log and texts != ["length"]:
            time.sleep(self.seconds)
            with open(self.log, "a", encoding="utf-8") as file:
                file.writelines(f"{os.getpid()} {text[:60]!r}\n" for text in texts)
        return [self._vector(text) for text in texts]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._vector(query)


def write_checkpoint(folder: Path) -> Path:
    """A checkpoint that other processes can load, of random weights on a tiny base."""
    tiny = tiny_base()
    tiny.model.save_pretrained(folder / "base")
    tiny.tokenizer.save_pretrained(folder / "base")
    settings = tiny_model().config
    model = ZModel.create(
        BaseLM.load(folder / "base", device="cpu"),
        rank=settings.rank,
        slots=settings.slots,
        packer_width=settings.packer_width,
        pointer_width=settings.pointer_width,
    )
    model.save_pretrained(folder / "checkpoint")
    return folder / "checkpoint"


def load_checkpoint(checkpoint: Path) -> ZCompressor:
    return ZCompressor.from_pretrained(checkpoint, device="cpu")


def documents(count: int = 30) -> list[Document]:
    """Texts of one chunk each; the last two are the same text."""
    texts = [text for text, _, _ in passages(count - 1)]
    return [Document(text=text, id_=f"{n}.txt") for n, text in enumerate([*texts, texts[-1]])]


def build(checkpoint: Path, path: Path, embedding: SlowEmbedding, on_ray: bool) -> ZTokenIndex:
    return ZTokenIndex.build(
        documents(),
        path,
        compressor=load_checkpoint(checkpoint),
        embed_model=embedding,
        engine=ENGINE if on_ray else None,
    )


if __name__ == "__main__":
    build(
        Path(sys.argv[1]), Path(sys.argv[2]), SlowEmbedding(log=sys.argv[3], seconds=0.5), True
    ).close()
