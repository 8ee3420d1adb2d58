"""Fixtures on the real default model, loaded once per test run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Set-up has put everything on disk; a test that reaches for the network is wrong.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Workers of pytest-xdist share the cores, and so do the commands that they run.
os.environ.setdefault(
    "OMP_NUM_THREADS",
    str(max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))),
)

import llama_index.core
from llama_index.core.bridge.pydantic import Field
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.base import BaseEvent
from llama_index.core.instrumentation.events.llm import LLMCompletionStartEvent

from ztok_rag import ZCompressor, ZReader, ZStore
from ztok_rag.llamaindex.events import ZTokenLookupEvent, ZTokenSpliceEvent

PASSAGE = (
    "The lighthouse on Gull Rock was built in 1873 by the engineer Marta Lindqvist. Its lamp "
    "burned whale oil until 1901, when a dynamo was installed. The last keeper, Tomas Berg, "
    "left the island in 1968, and the tower has run without a crew ever since."
)

LIGHTHOUSE = PASSAGE
BAKERY = (
    "The bakery on Harbour Lane opens at six. Its rye bread is baked in a wood-fired oven, which "
    "was brought from Turku by ship. On Sundays the owner, Elin Strand, sells cardamom buns."
)


def ztok(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "ztok_rag.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="session")
def compressor() -> ZCompressor:
    return ZCompressor.from_pretrained(device="cpu")


@pytest.fixture(scope="session")
def reader(compressor: ZCompressor) -> ZReader:
    return compressor.reader


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ZStore]:
    with ZStore(tmp_path / "store") as opened:
        yield opened


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of third-party data in `ZTOK_DATA`; tests that need it skip without."""
    folder = os.environ.get("ZTOK_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("ZTOK_DATA does not name a folder of evaluation data")
    return Path(folder)


class Recorder(BaseEventHandler):
    """Keeps the prompts sent to LLMs, and the events of this package."""

    prompts: list[str] = Field(default_factory=list)
    lookups: list[ZTokenLookupEvent] = Field(default_factory=list)
    splices: list[ZTokenSpliceEvent] = Field(default_factory=list)

    def handle(self, event: BaseEvent, **kwargs: object) -> None:
        if isinstance(event, LLMCompletionStartEvent):
            self.prompts.append(event.prompt)
        elif isinstance(event, ZTokenLookupEvent):
            self.lookups.append(event)
        elif isinstance(event, ZTokenSpliceEvent):
            self.splices.append(event)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """What happens during the test."""
    recorder = Recorder()
    handlers = get_dispatcher().event_handlers
    handlers.append(recorder)
    yield recorder
    handlers.remove(recorder)


@pytest.fixture
def prompts(recorder: Recorder) -> list[str]:
    """The prompts sent to any LLM during the test."""
    return recorder.prompts


@pytest.fixture
def tokenizer_left_as_it_was() -> Iterator[None]:
    before = llama_index.core.global_tokenizer
    yield
    llama_index.core.global_tokenizer = before
