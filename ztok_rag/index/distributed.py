"""Ingestion on Ray: chunks to actors, each with the models, and from them to segments on disk.

An actor writes a segment when a block is done, and the segments are loaded into the store and onto
the chunks when all are there. Whatever is killed, the next run finds the segments and makes the
rest. Ray Data's own checkpoint is not used: it lists ids beside the data, so rows of a damaged file
would count as done. A segment that is whole is the checkpoint.

Blocks are those in which one process compresses and embeds, so bytes come out the same.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.schema import BaseNode, MetadataMode
from tqdm.auto import tqdm

from ztok_rag.codec.compressed_text import CompressedText
from ztok_rag.errors import SequenceError, ZtokError
from ztok_rag.index.chunks import CHUNKS_AT_ONCE, chunk_text
from ztok_rag.index.cluster import ray_cluster
from ztok_rag.index.segments import (
    Row,
    arrow_modules,
    attempt,
    forget_attempts,
    known_rows,
    read_segments,
    row_id,
    write_segment,
)
from ztok_rag.llamaindex.embedding import embedding_dimension, embedding_name
from ztok_rag.selection.sentences import SentenceScorer
from ztok_rag.storage.backends import in_parts

if TYPE_CHECKING:
    from ztok_rag.codec.compressor import ZCompressor
    from ztok_rag.storage.store import ZStore

_CORES = 4
_REPLICA_BYTES = 3 * 2**29  # of the default base LLM in float32, its adapter, and one batch
_TRIES = 8  # of a block whose actor or node is lost each time; Ray itself would never give up

_TEXTS_AT_ONCE = 1000  # that the store is asked for by one query

Item = tuple[str, str]
"""Row id in hex, and the text that the row is made of."""


@dataclass(frozen=True)
class RayEngine:
    """How an index is built on Ray.

    Attributes:
        workers: replicas of the models; `None` is one per GPU, or one per `cores` where the models
            run on CPUs, as far as the cluster's memory goes.
        cores: CPU cores of a replica; `None` is its share of all, 4 at most.
        address: of a running Ray cluster; `None` is the one that is connected, or that
            `RAY_ADDRESS` names, else one of this machine's own. The index's folder must be one that
            all its machines share.
        block: chunks that are compressed or embedded between two writes. Where another than the
            default is given, rounding may turn a bit of a sentence's embedding.
    """

    workers: int | None = None
    cores: int | None = None
    address: str | None = None
    block: int = CHUNKS_AT_ONCE

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ZtokError: one is below 1.
        """
        for name in ("workers", "cores", "block"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ZtokError(f"{name} of a RayEngine must be at least 1, not {value!r}.")

    def prepare(
        self,
        nodes: Sequence[BaseNode],
        compressor: ZCompressor,
        embed_model: BaseEmbedding,
        store: ZStore,
        folder: Path,
        *,
        show_progress: bool,
    ) -> int:
        """Give chunks their embeddings, and put their Z-tokens into the store.

        Args:
            nodes: chunks.
            compressor: of a checkpoint on disk, so that workers can load it.
            embed_model: one that can be pickled.
            store: gets what it does not hold.
            folder: of the segments, which every worker can write. They stay until an index holds
                what is in them.
            show_progress: whether to show a progress bar.

        Returns:
            The number of rows that had to be made: one per text to compress and per chunk to embed.

        Raises:
            ZtokError: Ray is not installed or cannot be started, the models cannot be sent to other
                processes, or a worker failed.
        """
        arrow_modules()
        plan = Plan.of(nodes, compressor, embed_model, store)
        done = known_rows(folder, plan.ids)
        blocks = [*plan.blocks(done, self.block, embed_model.embed_batch_size)]
        rows = sum(len(items) for _, items in blocks)
        forget_attempts(folder)
        if blocks:
            self._run(blocks, (compressor, embed_model), folder, show_progress)
        _load(folder, plan, compressor, store)
        return rows

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Keep Ray for all that is prepared in the body; without, it is started for each time.

        Raises:
            ZtokError: Ray is not installed or cannot be started.
        """
        least = (self.workers or 1) * (self.cores or 1)
        with ray_cluster(self.address, max(least, os.cpu_count() or 1)):
            yield

    def _shape(self, have: dict[str, float], gpu: bool) -> tuple[int, int]:
        """Replicas, and the cores of each.

        Args:
            have: what a cluster has in all.
            gpu: whether each replica takes one.

        Raises:
            ZtokError: the cluster has no place for them.
        """
        cpus, gpus = max(1, int(have.get("CPU", 1))), int(have.get("GPU", 0))
        cores = self.cores or min(_CORES, max(1, cpus // (self.workers or 1)))
        places = min(cpus // cores, gpus) if gpu else cpus // cores
        if places < (self.workers or 1):
            raise ZtokError(
                f"the Ray cluster has {cpus} cores and {gpus} GPUs, too few for "
                f"{self.workers or 1} workers of {cores} cores{' and a GPU' if gpu else ''}; give "
                "fewer workers or cores."
            )
        room = int(have.get("memory", 0)) // _REPLICA_BYTES
        return self.workers or max(1, min(places, room)), cores

    def _run(
        self,
        blocks: Sequence[tuple[str, list[Item]]],
        models: tuple[ZCompressor, BaseEmbedding],
        folder: Path,
        show_progress: bool,
    ) -> None:
        with self.connected():
            import ray
            import ray.data

            packed = _pickled(ray.cloudpickle, *models)
            gpu = models[0].model.base.device.type == "cuda"
            replicas, cores = self._shape(ray.cluster_resources(), gpu)
            context = ray.data.DataContext.get_current()
            before, context.enable_progress_bars = context.enable_progress_bars, False
            logging.getLogger("ray.data").setLevel(logging.ERROR)  # its import sets another
            try:
                data = ray.data.from_items(
                    [{"kind": kind, "items": pickle.dumps(items)} for kind, items in blocks],
                    override_num_blocks=len(blocks),
                ).map_batches(
                    Worker,
                    batch_size=1,
                    compute=ray.data.ActorPoolStrategy(size=min(replicas, len(blocks))),
                    fn_constructor_kwargs={
                        "models": packed,
                        "folder": str(folder),
                        "threads": cores,
                    },
                    num_cpus=cores,
                    num_gpus=1 if gpu else 0,
                )
                total = sum(len(items) for _, items in blocks)
                with tqdm(total=total, desc="On Ray", disable=not show_progress) as bar:
                    for row in data.iter_rows():
                        bar.update(row["rows"])
            except Exception as error:  # Ray's errors have no common base
                raise ZtokError(
                    f"ingestion on Ray failed ({_cause(error)}); mend that and run again: what is "
                    "done is kept."
                ) from error
            finally:
                context.enable_progress_bars = before


def make_engine(engine: str | RayEngine | None) -> RayEngine | None:
    """The engine that an argument names; `None` is this process.

    Raises:
        ZtokError: there is no such engine.
    """
    if engine is None or isinstance(engine, RayEngine):
        return engine
    if engine == "ray":
        return RayEngine()
    raise ZtokError(f"there is no engine {engine!r}; give 'ray', a RayEngine, or leave it out.")


class Worker:
    """An actor: makes the rows of a block and writes them as a segment."""

    def __init__(self, models: bytes, folder: str, threads: int) -> None:
        """Load the models.

        Args:
            models: pickled by the driver.
            folder: of the segments.
            threads: for PyTorch.
        """
        import torch

        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
        self._compressor, self._embed_model = pickle.loads(models)
        self._folder = Path(folder)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        """Make the rows of one block; how many they are."""
        (kind,), (packed,) = batch["kind"], batch["items"]
        items: list[Item] = pickle.loads(packed)
        make = {"codes": self._codes, "vectors": self._vectors}[str(kind)]
        with attempt(self._folder, f"{kind} {items[0][0]}", _TRIES):
            rows = make([bytes.fromhex(i) for i, _ in items], [text for _, text in items])
            write_segment(self._folder, rows)
        return {"rows": [len(items)]}

    def _codes(self, ids: Sequence[bytes], texts: list[str]) -> list[Row]:
        made = self._compressor.compress_all_rates(texts)
        kept = _Sentences()
        SentenceScorer(self._compressor.tokenizer, self._embed_model, cast("ZStore", kept)).prepare(
            texts
        )
        return [
            Row(i, own.to_bytes(), *kept.of.get(text, ("", None)))
            for i, text, own in zip(ids, texts, made, strict=True)
        ]

    def _vectors(self, ids: Sequence[bytes], texts: list[str]) -> list[Row]:
        vectors = self._embed_model.get_text_embedding_batch(texts)
        return [Row(i, vector=list(vector)) for i, vector in zip(ids, vectors, strict=True)]


class _Sentences:
    """Stands where `SentenceScorer` keeps the embeddings of sentences, and holds them."""

    def __init__(self) -> None:
        self.of: dict[str, tuple[str, bytes]] = {}

    def get_bytes_many(self, kind: str, texts: Sequence[str]) -> dict[str, bytes]:
        return {}

    def put_bytes_many(self, kind: str, data: Mapping[str, bytes]) -> None:
        self.of |= {text: (kind, own) for text, own in data.items()}


@dataclass(frozen=True)
class Plan:
    """The rows that chunks need.

    Attributes:
        codes: distinct texts that the store does not hold, by row id; `None` where it does.
        vectors: chunks to embed, by row id.
    """

    codes: dict[bytes, str | None]
    vectors: dict[bytes, BaseNode]

    @classmethod
    def of(
        cls,
        nodes: Sequence[BaseNode],
        compressor: ZCompressor,
        embed_model: BaseEmbedding,
        store: ZStore,
    ) -> Plan:
        """The rows of chunks, in order."""
        mark = compressor.fingerprint
        name = f"{embedding_name(embed_model)} {embedding_dimension(embed_model)}"
        codes: dict[bytes, str | None] = {}
        for texts in in_parts(dict.fromkeys(map(chunk_text, nodes)), _TEXTS_AT_ONCE):
            held = store.lengths(mark, texts)
            for text in texts:
                codes[row_id("codes", mark, name, text)] = None if text in held else text
        vectors = {row_id("vector", name, n.node_id, _embedded(n)): n for n in nodes}
        return cls(codes, vectors)

    @property
    def ids(self) -> set[bytes]:
        """Of all rows that somebody has to make."""
        return {i for i, text in self.codes.items() if text is not None} | self.vectors.keys()

    def blocks(
        self, done: set[bytes], size: int, embed_batch: int
    ) -> Iterator[tuple[str, list[Item]]]:
        """What is not done, in the blocks in which one process would do it.

        Args:
            done: ids of rows that are there.
            size: rows of a block.
            embed_batch: chunks that the embedding model takes at once; rounding depends on it.
        """
        texts = list(self.codes.items())
        for start in range(0, len(texts), size):
            part = [(i, t) for i, t in texts[start : start + size] if t is not None]
            if items := [(i.hex(), t) for i, t in part if i not in done]:
                yield "codes", items
        nodes = list(self.vectors.items())
        size = max(1, size // embed_batch) * embed_batch
        for start in range(0, len(nodes), size):
            chunks = nodes[start : start + size]
            if items := [(i.hex(), _embedded(n)) for i, n in chunks if i not in done]:
                yield "vectors", items


def _load(folder: Path, plan: Plan, compressor: ZCompressor, store: ZStore) -> None:
    """Bring segments into the store and onto the chunks; what is there already stays."""
    for rows in read_segments(folder):
        found = [(row, plan.codes[row.id]) for row in rows if row.id in plan.codes]
        wanted = [(row, text) for row, text in found if row.codes is not None and text is not None]
        tokens = compressor.tokenize([text for _, text in wanted])
        texts: dict[str, CompressedText] = {}
        sentences: dict[str, dict[str, bytes]] = {}
        for (row, text), own in zip(wanted, tokens, strict=True):
            try:
                texts[text] = CompressedText.from_bytes(row.codes or b"", own)
            except SequenceError:
                continue  # it is compressed again when the index looks for it
            if row.sentences is not None:
                sentences.setdefault(row.kind, {})[text] = row.sentences
        store.put_many(texts)
        for kind, data in sentences.items():
            store.put_bytes_many(kind, data)
        for row in rows:
            if row.id in plan.vectors and row.vector is not None:
                plan.vectors[row.id].embedding = row.vector


def _pickled(pickler: Any, compressor: ZCompressor, embed_model: BaseEmbedding) -> bytes:
    """The models for other processes, which load them from where they are."""
    try:
        packed: bytes = pickler.dumps((compressor, embed_model))
        return packed
    except ZtokError:
        raise
    except Exception as error:  # a class may raise anything here
        raise ZtokError(
            f"the embedding model {type(embed_model).__name__} cannot be sent to other processes "
            f"({error}); give one that can be pickled, or leave the engine out."
        ) from error


def _cause(error: BaseException) -> str:
    """The innermost cause, in one line."""
    while True:
        inner = error.__cause__ or getattr(error, "cause", None)
        if not isinstance(inner, BaseException) or inner is error:
            break
        error = inner
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def _embedded(node: BaseNode) -> str:
    """What LlamaIndex embeds of a chunk."""
    return node.get_content(metadata_mode=MetadataMode.EMBED)
