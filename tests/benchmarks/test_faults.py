"""A few faults of each kind; `benchmarks/faults.py` makes hundreds."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
from pathlib import Path

import pytest
from llama_index.core import Document

import faults
from breakage import redis_server
from breakage.outcome import Outcome
from breakage.world import World
from ztok_rag import ZtokError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="faults are made by forking")
TRIALS = 4
IN_FLIGHT = 3
"""Most chunks of a document of this world, which one change has in flight."""


@pytest.fixture(scope="module")
def world() -> World:
    return World(seed=5)


@pytest.mark.parametrize("kind", faults.KINDS)
def test_no_fault_gives_a_wrong_answer(world: World, kind: str) -> None:
    if kind in ("segments", "files") and importlib.util.find_spec("pyarrow") is None:
        pytest.skip("pyarrow is not installed")
    if kind == "redis" and not redis_server.is_installed():
        pytest.skip("redis-server or the package redis is not installed")
    trials = 2 if kind == "redis" else TRIALS  # a server takes its time to stop and start
    found = faults.make(world, [kind], trials, seed=5)
    assert [outcome.wrong for outcome in found] == [[] for _ in found]
    for outcome in found:
        assert outcome.faults >= trials, outcome
        if outcome.kind != "damaged store files":  # all may be lost there, and is made again
            assert outcome.lost <= (1 if kind == "redis" else IN_FLIGHT), outcome
    assert sum(outcome.checks for outcome in found) > 0


def test_a_wrong_answer_is_seen(world: World, tmp_path: Path) -> None:
    ids = world.ids[:2]
    world.build(tmp_path / "index", ids).close()
    assert world.check(tmp_path / "index", [frozenset(ids)]).wrong == []
    assert len(world.check(tmp_path / "index", [frozenset(ids[:1])]).wrong) == 1
    with world.load(tmp_path / "index") as index:
        index.delete_ref_doc(ids[0])
        index.insert(Document(text="Another text altogether.", id_=ids[0]))
    assert world.check(tmp_path / "index").wrong


@pytest.mark.parametrize("name", ["docstore.json", "default__vector_store.json", "digests.json"])
def test_one_turned_bit_of_an_index_is_named(world: World, tmp_path: Path, name: str) -> None:
    world.build(tmp_path / "index", world.ids[:2]).close()
    file = tmp_path / "index" / "index" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ZtokError, match=r"is damaged.*build it again"):
        world.load(tmp_path / "index")


def test_a_database_whose_settings_are_lost_is_replaced(world: World, tmp_path: Path) -> None:
    """As a cut may leave it, together with a log of before."""
    world.build(tmp_path / "index", world.ids[:2]).close()
    connection = sqlite3.connect(tmp_path / "index" / "store" / "cache.db")
    connection.executescript(
        "DROP TABLE Settings; CREATE TABLE Settings (key TEXT, value); "
        "INSERT INTO Settings VALUES (NULL, NULL)"
    )
    connection.close()
    seen = world.check(tmp_path / "index", [frozenset(world.ids[:2])])
    assert seen.wrong == [] and seen.compressed == seen.checks


def test_settings_have_a_checksum(world: World, tmp_path: Path) -> None:
    world.build(tmp_path / "index", world.ids[:2]).close()
    file = tmp_path / "index" / "ztok.json"
    written = file.read_text()
    file.write_text(written.replace('"rate": 4.0', '"rate": 6.0'))
    with pytest.raises(ZtokError, match="its checksum does not match"):
        world.load(tmp_path / "index")
    # Earlier versions wrote neither checksum nor digests.
    values = json.loads(written)
    del values["checksum"]
    file.write_text(json.dumps(values))
    (tmp_path / "index" / "index" / "digests.json").unlink()
    assert world.check(tmp_path / "index", [frozenset(world.ids[:2])]).wrong == []


def test_the_results_have_every_count(world: World) -> None:
    outcome = Outcome("kind", "what may be", faults=3, checks=9, wrong=["one"], refused=1, lost=2)
    rows = {row.metric: row.score for row in faults.rows(outcome)}
    assert rows == {"faults": 3, "answers": 9, "wrong": 1, "refused": 1, "most_lost": 2}
