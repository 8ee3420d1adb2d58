"""The public names have types that a user's type checker sees."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import ztok_rag

ROOT = Path(__file__).parent.parent

RIGHT = """
from collections.abc import Sequence
from pathlib import Path
from typing import Any, assert_type

from llama_index.core import Document, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms import LLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import TransformComponent

from ztok_rag import (
    CheckpointError,
    DataError,
    HandleError,
    RayEngine,
    SequenceError,
    ZCompressor,
    ZGenerator,
    ZReader,
    ZSequence,
    ZStore,
    ZTokenIndex,
    ZTokenLLM,
    ZTokenPostprocessor,
    ZTokenTransform,
    ZtokError,
)
from ztok_rag import default_embedding, find_citations, find_duplicates


def compress(texts: Sequence[str], folder: Path) -> list[str]:
    compressor = ZCompressor.from_pretrained(folder, base="some/base", device="cpu")
    (z,) = compressor.compress(texts, rate=4)
    assert_type(z, ZSequence)
    assert_type(len(z) / z.rate, float)
    assert_type(compressor.decompress([z]), list[str])
    assert_type(compressor.held_text(z), str)
    assert_type(compressor.reader, ZReader)
    both = ZSequence.concat([z, z + z.slice(0, 9, unit="tokens")])
    assert_type(find_duplicates([both, z], at_least=4)[0].places[0].span, tuple[int, int])
    z.save(folder / "text.zt")
    assert_type(ZSequence.load("text.zt", compressor.model.token_code), ZSequence)
    assert_type(ZSequence.from_bytes(z.to_bytes(), z.code), ZSequence)
    with ZStore(folder) as store:
        assert_type(store, ZStore)
        assert_type(store.get_or_compress(compressor, texts, rate=4), list[ZSequence])
        assert_type(store.stats.hits, int)
    reader = ZReader.from_pretrained()
    assert_type(reader.repeat([z], speculate=True), list[str])
    z.to_embeds(reader), reader.to_embeds([z, "Question?"], ask_first=False)
    writer = ZGenerator(compressor.model)
    assert_type(writer.generate([z, "In short:"], read_as="both"), ZSequence)
    assert_type(next(writer.stream("Once", confidence=0.7, longest=4)), ZSequence)
    assert_type(writer.text(z), str)
    assert_type(writer.score("Once upon a time.").sizes.max(), Any)
    return reader.generate([[z, "Question?"], "Text alone"], max_new_tokens=16, adapter=None)


def query(documents: list[Document], other_llm: LLM) -> str:
    index = VectorStoreIndex.from_documents(documents, embed_model=default_embedding())
    postprocessor = ZTokenPostprocessor(rate=4)
    as_base: BaseNodePostprocessor = postprocessor
    ZTokenLLM(api_base="http://127.0.0.1:8000/v1", api_key="token", timeout=30.0)
    llm: LLM = ZTokenLLM(max_new_tokens=32, look_twice=False, copying=True, ask_first=True)
    ZTokenLLM(speculate="both")
    engine = index.as_query_engine(llm=llm, node_postprocessors=[as_base], similarity_top_k=3)
    assert_type(postprocessor.stats.compressed, int)
    transform: TransformComponent = ZTokenTransform()
    IngestionPipeline(transformations=[SentenceSplitter(), transform]).run(documents=documents)
    ZTokenPostprocessor(token_budget=500)
    ZTokenPostprocessor(context_format="text", llm=other_llm)
    response = engine.query("Who built the lighthouse?")
    assert_type(find_citations(response, ZTokenLLM())[0].text, str)
    return str(response)


def corpus(documents: list[Document]) -> int:
    index = ZTokenIndex.build(documents, "my_index", rate=4, engine=RayEngine(workers=2))
    assert_type(ZTokenIndex.load("my_index"), ZTokenIndex)
    index.query("Who built the lighthouse?").source_nodes
    assert_type(index.refresh_ref_docs(documents).added, tuple[str, ...])
    index.insert(documents[0])
    index.delete_ref_doc("doc-id")
    index.as_retriever(similarity_top_k=3)
    str(index.as_chat_engine("context").chat("Who built the lighthouse?"))
    return index.stats().z_tokens


def cause(error: Exception) -> str:
    if isinstance(error, CheckpointError | DataError | HandleError | SequenceError):
        as_base: ZtokError = error
        return str(as_base)
    return ""
"""

WRONG = """
from ztok_rag import ZCompressor, ZReader, ZSequence, ZStore, ZTokenIndex, ZTokenLLM
from ztok_rag import ZTokenPostprocessor, ZTokenTransform, nothing  # attr-defined

model = ZCompressor.from_pretrained().model

ZCompressor.from_pretrained(3)  # arg-type
ZCompressor.from_pretrained().compress(["text"], rate="4")  # arg-type
ZReader.from_pretrained().generate([7])  # list-item
ZSequence.load("text.zt", model.token_code).spent  # attr-defined
ZStore(path="folder").get(ZCompressor.from_pretrained())  # call-arg
ZTokenIndex.load("folder").stats().nothing  # attr-defined
ZTokenLLM(reader="reader")  # arg-type
ZTokenLLM(look_twice="yes")  # arg-type
ZTokenPostprocessor(context_format="nothing")  # arg-type
ZTokenTransform(query_aware="4")  # arg-type
answer: int = ZTokenIndex.load("folder").rate  # assignment
"""

# Large packages that the public names do not mention: skipped to save time.
CONFIG = """
[mypy]
strict = True
[mypy-transformers.*,peft.*,sentence_transformers.*,faiss.*,torch.*]
follow_imports = skip
"""


def check(folder: Path) -> list[str]:
    """What mypy says of right.py and wrong.py for somebody who has installed the package."""
    site = folder / "site"
    site.mkdir()
    (site / "ztok_rag").symlink_to(ROOT / "ztok_rag")
    (folder / "right.py").write_text(RIGHT)
    (folder / "wrong.py").write_text(WRONG)
    (folder / "mypy.ini").write_text(CONFIG)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--config-file", "mypy.ini"),
            *("--cache-dir", str(ROOT / ".mypy_cache" / "user"), "--no-error-summary"),
            *("right.py", "wrong.py"),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode in (0, 1) and not done.stderr, done.stderr
    return [line for line in done.stdout.splitlines() if ": error: " in line]


def test_a_users_file_is_checked_strictly(tmp_path: Path) -> None:
    assert all(re.search(rf"\b{name}\b", RIGHT) for name in ztok_rag.__all__)
    found = check(tmp_path)
    assert [line for line in found if not line.startswith("wrong.py:")] == []
    wanted = [
        (number, code)
        for number, line in enumerate(WRONG.splitlines(), start=1)
        for code in line.partition("  # ")[2].split()
    ]
    said = [re.match(r"wrong\.py:(\d+): error: .* \[([\w-]+)\]$", line) for line in found]
    assert [(int(m[1]), m[2]) for m in said if m] == wanted, found


def test_types_are_shipped() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "py.typed" in settings["tool"]["setuptools"]["package-data"]["ztok_rag"]
    assert (ROOT / "ztok_rag" / "py.typed").is_file()
