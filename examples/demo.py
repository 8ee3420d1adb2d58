"""Index pages of the Python documentation, and answer from raw text and from Z-tokens.

Everything runs on the shipped checkpoint, without a network, in a minute or two on two CPU cores.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics

import faiss
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.callbacks import TokenCountingHandler
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import MetadataMode
from llama_index.vector_stores.faiss import FaissVectorStore
from rich.console import Console
from rich.table import Table

from ztok_rag import (
    ZCompressor,
    ZStore,
    ZTokenLLM,
    ZTokenPostprocessor,
    ZTokenTransform,
    default_embedding,
)

PAGES = (
    "pass",
    "lambda",
    "break",
    "continue",
    "return",
    "while",
    "assert",
    "global",
    "exceptions",
    "context-managers",
    "bltin-ellipsis-object",
)
QUESTIONS = (
    "What are lambda expressions used to create?",
    "Which exception is raised when a generator is done?",
    "What model of error handling does Python use?",
    "What is the built-in name of the single ellipsis object?",
)
CHUNK_TOKENS = 128


def ask(engine: BaseQueryEngine, question: str) -> tuple[str, int, float]:
    """The answer, the prompt's tokens, and milliseconds from question to answer."""
    counter = TokenCountingHandler()
    engine.callback_manager.add_handler(counter)
    start = time.perf_counter()
    answer = str(engine.query(question))
    ms = 1000 * (time.perf_counter() - start)
    engine.callback_manager.remove_handler(counter)
    return answer, counter.prompt_llm_token_count, ms


def build_index() -> VectorStoreIndex:
    documents = [Document(text=topics[page], metadata={"page": page}) for page in PAGES]
    storage = StorageContext.from_defaults(
        vector_store=FaissVectorStore(faiss_index=faiss.IndexFlatIP(384))
    )
    # The page's name is for the tables, not for the LLM.
    for document in documents:
        document.excluded_llm_metadata_keys = ["page"]
    return VectorStoreIndex.from_documents(
        documents,
        storage_context=storage,
        embed_model=default_embedding(),
        transformations=[SentenceSplitter(chunk_size=CHUNK_TOKENS, chunk_overlap=0)],
    )


def chunk_table(
    index: VectorStoreIndex, compressor: ZCompressor, store: ZStore, rate: float
) -> Table:
    """Every chunk's tokens and Z-tokens; compresses them into the store."""
    nodes = list(index.docstore.docs.values())
    texts = [node.get_content(MetadataMode.NONE) for node in nodes]
    start = time.perf_counter()
    ZTokenTransform(compressor=compressor, store=store)(nodes)
    seconds = time.perf_counter() - start
    compressed, _ = store.resolve(compressor, texts)
    sizes = [len(own.to_bytes()) for own in compressed]  # for every rate
    sequences = [own.at(rate, compressor.slots) for own in compressed]
    table = Table(
        title=f"{len(nodes)} chunks compressed in {seconds:.1f} s, here at rate {rate:g}",
        title_justify="left",
    )
    table.add_column("page")
    table.add_column("begins", no_wrap=True, max_width=44)
    for name in ("tokens", "Z-tokens", "rate", "bytes stored"):
        table.add_column(name, justify="right")
    for node, text, z, size in zip(nodes, texts, sequences, sizes, strict=True):
        table.add_row(
            str(node.metadata["page"]),
            " ".join(text.split())[:44],
            str(z.source_tokens),
            str(len(z)),
            f"{z.rate:.1f}",
            str(size),
        )
    table.add_section()
    tokens, z_tokens = sum(z.source_tokens for z in sequences), sum(map(len, sequences))
    table.add_row(
        "all", "", str(tokens), str(z_tokens), f"{tokens / z_tokens:.1f}", str(sum(sizes))
    )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=4.0, help="source tokens per Z-token")
    parser.add_argument("--k", type=int, default=4, help="chunks retrieved per question")
    options = parser.parse_args()
    console = Console()

    with console.status("Loading the model"):
        compressor = ZCompressor.from_pretrained()
    with console.status("Embedding and indexing"):
        index = build_index()

    # A fresh store, so that the first round really compresses.
    with tempfile.TemporaryDirectory() as folder, ZStore(Path(folder)) as store:
        console.print(chunk_table(index, compressor, store, options.rate))
        postprocessor = ZTokenPostprocessor(rate=options.rate, compressor=compressor, store=store)
        raw, z = (
            index.as_query_engine(
                llm=ZTokenLLM(reader=compressor.reader, store=store, max_new_tokens=24),
                node_postprocessors=postprocessors,
                similarity_top_k=options.k,
            )
            for postprocessors in ([], [postprocessor])
        )
        for engine in (raw, z):  # the first use of anything is slower
            ask(engine, QUESTIONS[0])

        table = Table(
            title=f"The {options.k} best chunks of each question, read two ways",
            title_justify="left",
            show_lines=True,
        )
        table.add_column("question", ratio=3)
        for name in ("raw text", "Z-tokens"):
            table.add_column(name, ratio=3)
            table.add_column("tokens", justify="right")
            table.add_column("ms", justify="right")
        for question in QUESTIONS:
            cells = [question]
            for engine in (raw, z):
                answer, tokens, ms = ask(engine, question)
                cells += [" ".join(answer.split()), str(tokens), f"{ms:.0f}"]
            table.add_row(*cells)
        console.print(table)

        before = postprocessor.stats
        ask(z, QUESTIONS[0])
        after = postprocessor.stats
        nodes = after.nodes - before.nodes
        console.print(
            f"The first question once more: {after.compressed - before.compressed} of {nodes} "
            f"chunks compressed, {(after.ms - before.ms) / nodes:.1f} ms of postprocessing each."
        )


if __name__ == "__main__":
    main()
