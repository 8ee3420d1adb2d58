"""What a text is compressed to depends on the text alone."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import BAKERY, PASSAGE
from ztok_rag import ZCompressor
from ztok_rag.codec import compressed_text
from ztok_rag.codec import compressor as module

TEXTS = [
    PASSAGE,
    BAKERY,
    "Short.",
    " ".join([BAKERY, PASSAGE, BAKERY]),
    "def build(tower: str) -> int:\n    return len(tower)  # in metres\n",
]

IN_A_PROCESS = """
import torch
from tests.codec.test_determinism import TEXTS, digest
from ztok_rag import ZCompressor
torch.set_num_threads(2)
print(digest(ZCompressor.from_pretrained(device="cpu"), TEXTS[::-1]))
"""


def digest(compressor: ZCompressor, texts: list[str], batch_tokens: int = 4096) -> str:
    """A hash of all that the texts are compressed to, whatever their order."""
    whole = compressor.compress_all_rates(texts, batch_tokens=batch_tokens)
    found = [text.to_bytes() for text in whole]
    found += [text.at(rate, compressor.slots).to_bytes() for text in whole for rate in (2, 4, 32)]
    return hashlib.sha256(b"".join(sorted(found))).hexdigest()


@pytest.fixture
def exact(compressor: ZCompressor) -> ZCompressor:
    if compressor.model.base.dtype != torch.float32:
        pytest.skip("the base runs in bf16 here, in which rounding depends on the batch")
    return compressor


def test_codes_do_not_depend_on_batch_padding_threads_or_process(exact: ZCompressor) -> None:
    alone = digest(exact, TEXTS, batch_tokens=1)
    assert digest(exact, TEXTS) == alone
    assert digest(exact, TEXTS[2:] + TEXTS[:2], batch_tokens=200) == alone
    threads = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            assert digest(exact, TEXTS) == alone
    finally:
        torch.set_num_threads(threads)
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [alone]


def test_in_bf16_texts_are_read_one_by_one_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZTOK_DTYPE", "bfloat16")
    half = ZCompressor.from_pretrained(device="cpu")
    assert half.model.base.dtype == torch.bfloat16
    sizes: list[int] = []
    original = half._weigh_batch

    def counted(windows: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
        sizes.append(len(windows))
        return original(windows)

    monkeypatch.setattr(half, "_weigh_batch", counted)
    alone = digest(half, TEXTS, batch_tokens=1)
    assert digest(half, TEXTS[::-1]) == alone
    assert sizes == [1] * 2 * len(TEXTS)
    # A GPU reads them together, unless it is asked not to.
    monkeypatch.setattr(module, "reads_alone", lambda base: False)
    digest(half, TEXTS)
    assert max(sizes) > 1


def test_a_token_at_the_edge_of_a_level_is_weighed_alone(
    exact: ZCompressor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    original = module.score

    def noisy(*arguments: object) -> tuple[np.ndarray, np.ndarray]:
        nats, lead = original(*arguments)  # type: ignore[arg-type]
        seen.append(nats)
        # As if what is beside a text in a batch changed its last bits.
        shift = 0.0 if len(nats) == tokens else 2e-5
        return nats + shift, lead + shift

    monkeypatch.setattr(module, "score", noisy)
    tokens = exact.count_tokens(BAKERY)
    (alone,) = exact.compress_all_rates([BAKERY])
    surprising = np.flatnonzero(alone.levels == 4)[0]
    edges = compressed_text._EDGES.copy()
    edges[2] = seen[0][surprising] + 1e-5  # the least below an edge
    monkeypatch.setattr(compressed_text, "_EDGES", edges)
    (alone,) = exact.compress_all_rates([BAKERY])
    for texts in ([BAKERY, PASSAGE], [PASSAGE, "Short.", BAKERY]):
        together = exact.compress_all_rates(texts)[texts.index(BAKERY)]
        assert together == alone
    monkeypatch.setattr(module, "_NOISE", 0.0)
    assert exact.compress_all_rates([BAKERY, PASSAGE])[0] != alone  # without it, they differ
