"""The arms that are asked for, and those that are refused."""

from __future__ import annotations

import pytest

from ztok_rag.errors import DataError
from ztok_rag.evaluation import make_arms


def test_arms() -> None:
    arms = make_arms(["none", "text", "text-reader", "ztok", "ztok-twice"], [4, 8])
    labels = ["none", "text", "text-reader", "ztok 4x", "ztok 8x", "ztok-twice 4x", "ztok-twice 8x"]
    assert [arm.label for arm in arms] == labels
    assert [arm.adapter for arm in arms] == ["read", None, *["read"] * 5]
    assert [arm.reads_z_tokens for arm in arms] == [False] * 3 + [True] * 4
    short = {"peer": lambda question, chunks, budget: ""}
    arms = make_arms(["peer"], [4, 8, 4.0], short)
    assert [(arm.label, arm.adapter) for arm in arms] == [("peer 4x", "read"), ("peer 8x", "read")]
    arms = make_arms(["text-reader+copying", "peer+copying", "text-reader"], [4, 8], short)
    labels = ["text-reader+copying", "peer+copying 4x", "peer+copying 8x", "text-reader"]
    assert [arm.label for arm in arms] == labels
    assert [arm.copies_text for arm in arms] == [True] * 3 + [False]
    for name in ("none+copying", "text+copying", "ztok+copying"):
        with pytest.raises(DataError, match="unknown arm"):
            make_arms([name], [4], short)
    with pytest.raises(DataError, match=r"'zip'; the arms are none, .*, ztok-twice, peer"):
        make_arms(["zip"], [4], short)
    with pytest.raises(DataError, match=r"at least 1 .* not 0\.5"):
        make_arms(["ztok"], [0.5])
