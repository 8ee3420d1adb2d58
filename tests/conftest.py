"""Fixtures on the real default model, loaded once per test run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Set-up has put everything on disk; a test that reaches for the network is wrong.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from ztok_rag import ZCompressor, ZReader, ZStore

PASSAGE = (
    "The lighthouse on Gull Rock was built in 1873 by the engineer Marta Lindqvist. Its lamp "
    "burned whale oil until 1901, when a dynamo was installed. The last keeper, Tomas Berg, "
    "left the island in 1968, and the tower has run without a crew ever since."
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
