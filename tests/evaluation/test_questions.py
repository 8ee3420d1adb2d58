"""Questions: templates and samples."""

from __future__ import annotations

import pytest

from ztok_rag.errors import DataError
from ztok_rag.evaluation import sample, split_template


def test_split_template() -> None:
    assert split_template("a {context} b {input}", input="{x}") == ("a ", " b {x}")
    with pytest.raises(DataError, match="exactly once"):
        split_template("no place", input="q")
    with pytest.raises(DataError, match="not one of input"):
        split_template("{context} {other}", input="q")


def test_sample_keeps_order_and_grows() -> None:
    items = list(range(100))
    small, large = sample(items, 5, 1), sample(items, 20, 1)
    assert small == sorted(small) and set(small) <= set(large)
    assert sample(items, None, 1) == items
