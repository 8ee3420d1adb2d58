"""The arms that are asked for, and those that are refused."""

from __future__ import annotations

import pytest

from ztok_rag.errors import DataError
from ztok_rag.evaluation import Arm, make_arms


def test_arms(caplog: pytest.LogCaptureFixture) -> None:
    arms = make_arms(["none", "text", "text-reader", "ztok"], [4, 8], ["read", "text"])
    assert [arm.label for arm in arms] == ["none", "text", "text-reader", "ztok 4x", "ztok 8x"]
    assert [arm.adapter for arm in arms] == ["read", None, "text", "read", "read"]
    assert make_arms(["text-reader", "text"], [4], ["read"]) == [Arm("text", 1.0, None)]
    assert "text-reader is left out" in caplog.text
    short = {"peer": lambda question, chunks, budget: ""}
    arms = make_arms(["peer"], [4, 8, 4.0], ["read", "text"], short)
    assert [(arm.label, arm.adapter) for arm in arms] == [("peer 4x", "text"), ("peer 8x", "text")]
    with pytest.raises(DataError, match=r"'zip'; the arms are none, .*, ztok-focus, peer"):
        make_arms(["zip"], [4], ["read"], short)
    with pytest.raises(DataError, match=r"at least 1 .* not 0\.5"):
        make_arms(["ztok"], [0.5], ["read"])
