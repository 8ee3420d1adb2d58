"""What the benchmark scripts share."""

from __future__ import annotations

from stand_in import WordTokenizer

import common


def test_chunks_lose_nothing_but_white_space_between_them() -> None:
    text = "\n\n\n".join(f"    y = {i}\n    z = {i}" for i in range(40)) + "\n"
    chunks = common.split_context(text, WordTokenizer(), 24)
    assert len(chunks) > 3
    assert "".join("".join(chunks).split()) == "".join(text.split())
    assert all(chunk.startswith("    y") and chunk[-1].isdigit() for chunk in chunks)
    assert common.split_context("  \n", WordTokenizer(), 24) == []
