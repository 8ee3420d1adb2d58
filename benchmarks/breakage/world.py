"""An index whose every right answer is known, and the check that it gives no other.

The compressor has the shipped checkpoint's tokenizer, code and file formats. The pass of the LLM
is replaced by weights that are computed from the tokens, so that thousands of changes take minutes.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from llama_index.core import Document
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import BaseNode, MetadataMode
from numpy.typing import NDArray

from ztok_rag import ZCompressor, ZSequence, ZTokenIndex
from ztok_rag.codec.base import load_tokenizer
from ztok_rag.codec.compressed_text import LEVELS, CompressedText
from ztok_rag.codec.config import ZConfig
from ztok_rag.codec.model import DEFAULT_CHECKPOINT, codes_fingerprint, read_token_code
from ztok_rag.index.chunks import chunk_text, split_documents
from ztok_rag.storage.handle import split_prompt

CHUNK = 60
RATES = (4.0, 8.0)
_WORDS = [
    "harbour",
    "lamp",
    "winter",
    "engineer",
    "granite",
    "ferry",
    "ledger",
    "copper",
    "orchard",
]


class TableCompressor(ZCompressor):
    """The shipped checkpoint without its LLM: a token's weight depends on the token alone."""

    def __init__(self) -> None:
        config = ZConfig.load(DEFAULT_CHECKPOINT)
        code = read_token_code(DEFAULT_CHECKPOINT)
        self.model: Any = SimpleNamespace(
            base=SimpleNamespace(tokenizer=load_tokenizer(config.base)),
            config=config,
            token_code=code,
            fingerprint=codes_fingerprint(config, code),
        )

    def __reduce__(self) -> tuple[type[TableCompressor], tuple[()]]:
        return TableCompressor, ()

    def _weigh(
        self, rows: Iterable[NDArray[np.int64]], batch_tokens: int | None
    ) -> list[NDArray[np.uint8]]:
        return [(row * 2654435761 // 97 % LEVELS).astype(np.uint8) for row in rows]


class TextEmbedding(MockEmbedding):
    """Vectors that depend on the text, without a model."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"embed_dim": 16, **kwargs})

    def _vector(self, text: str) -> list[float]:  # type: ignore[override]
        return np.random.default_rng(list(text.encode())).standard_normal(16).tolist()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._vector(text)

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._vector(query)


@dataclass
class Seen:
    """What a check found.

    Attributes:
        documents: ids of the index.
        wrong: answers that are not the right ones, in words.
        compressed: chunks whose Z-tokens were lost, and were made again.
        checks: answers compared.
    """

    documents: frozenset[str] = frozenset()
    wrong: list[str] = field(default_factory=list)
    compressed: int = 0
    checks: int = 0


class World:
    """Documents, and all that an index may say of them."""

    def __init__(self, seed: int, documents: int = 8) -> None:
        rng = np.random.default_rng(seed)
        self.compressor = TableCompressor()
        self.embedding = TextEmbedding()
        self.documents: dict[str, Document] = {}
        self.chunks: dict[str, list[BaseNode]] = {}
        for number in range(documents):
            words = rng.choice(_WORDS, 60)
            words[::7] = [f"{word}{number}" for word in words[::7]]
            text = ". ".join(" ".join(words[i : i + 12]) for i in range(0, 60, 12)) + "."
            document = Document(text=text, id_=f"{number:03}", metadata={"number": number})
            self.documents[document.doc_id] = document
            self.chunks[document.doc_id] = split_documents(
                [document], self.compressor.tokenizer, chunk_size=CHUNK, chunk_overlap=0
            )
        self.truth: dict[str, CompressedText] = {}
        for nodes in self.chunks.values():
            texts = [chunk_text(node) for node in nodes]
            made = self.compressor.compress_all_rates(texts)
            self.truth |= dict(zip(texts, made, strict=True))

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self.documents)

    def given(self, ids: Iterable[str]) -> list[Document]:
        return [self.documents[i] for i in ids]

    def build(self, path: Path, ids: Iterable[str], store: str | None = None) -> ZTokenIndex:
        return ZTokenIndex.build(
            self.given(ids), path, chunk_size=CHUNK, rate=RATES[0], store=store, **self._models()
        )

    def load(self, path: Path, store: str | None = None) -> ZTokenIndex:
        return ZTokenIndex.load(path, store=store, **self._models())

    def _models(self) -> dict[str, Any]:
        return {"compressor": self.compressor, "embed_model": self.embedding}

    def check(
        self, path: Path, allowed: Collection[frozenset[str]] | None = None, *, most: int = 1000
    ) -> Seen:
        """Ask an index for every chunk of every document, and compare all that it says.

        Args:
            path: of the index.
            allowed: sets of documents, of which it must hold one; `None` is any of this world's.
            most: chunks asked for.

        Raises:
            ZtokError: the index says that it cannot answer.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with self.load(path) as index:
                return self.check_index(index, allowed, most=most)

    def check_index(
        self,
        index: ZTokenIndex,
        allowed: Collection[frozenset[str]] | None = None,
        *,
        most: int = 1000,
    ) -> Seen:
        """As `check`, of an index that is open."""
        before = index.store.stats.compressed
        seen = Seen(frozenset(index.document_ids))
        if allowed is not None and seen.documents not in allowed:
            seen.wrong.append(f"it holds {sorted(seen.documents)}")
        wanted = [
            node for i in sorted(seen.documents & self.chunks.keys()) for node in self.chunks[i]
        ]
        retriever = index.as_retriever(similarity_top_k=1)
        postprocessor = index.postprocessor(query_aware=False)
        if index.rate not in RATES:
            seen.wrong.append(f"its rate is {index.rate}")
        for node in wanted[:most]:
            seen.checks += 1
            text = chunk_text(node)
            found = retriever.retrieve(node.get_content(metadata_mode=MetadataMode.EMBED))
            (best,) = found or (None,)
            if best is None or (best.node_id, best.node.get_content()) != (node.node_id, text):
                seen.wrong.append(f"for {node.node_id} it finds {best}")
                continue
            if best.node.metadata != node.metadata:
                seen.wrong.append(f"{node.node_id} has other metadata")
            (shown,) = postprocessor.postprocess_nodes(found)
            prompt = shown.node.get_content(metadata_mode=MetadataMode.LLM)
            parts = split_prompt(
                prompt,
                index.store.secret,
                self.compressor.fingerprint,
                self.compressor.model.token_code,
            )
            own = [part for part in parts if isinstance(part, ZSequence)]
            right = self.truth[text].at(index.rate, self.compressor.slots)
            if len(own) != 1 or own[0].to_bytes() != right.to_bytes():
                seen.wrong.append(f"{node.node_id} has other Z-tokens")
        seen.compressed = index.store.stats.compressed - before
        return seen
