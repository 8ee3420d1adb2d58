"""`benchmarks/store_size.py`, small, and the table that is made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import store_size
from breakage import redis_server
from figures import SECTIONS
from result_rows import Results
from tables.markdown import Place
from ztok_rag import ZStore
from ztok_rag.errors import DataError

ARMS = [arm for arm in store_size.ARMS if arm != "redis" or redis_server.is_installed()]


def test_a_store_grows(tmp_path: Path) -> None:
    output = tmp_path / "results" / "store_size"
    options = ["--arms", ",".join(ARMS), "--work", str(tmp_path), "--output", str(output)]
    store_size.main([*options, "--sizes", "300,100"])
    rows = json.loads((output / "results.json").read_text())["rows"]
    found = {(row["arm"], row["chunks"], row["metric"]): row for row in rows}
    for arm in ARMS:
        for size in (100, 300):
            of = {metric: row for (a, s, metric), row in found.items() if (a, s) == (arm, size)}
            for metric in ("get_64_ms", "put_64_ms", "delete_text_ms", "count_ms", "size_ms"):
                assert of[metric]["n"] == store_size.REPEATS and of[metric]["score"] > 0
            # What was put to be measured is gone.
            assert of["value_bytes"]["score"] == size * sum(store_size.KINDS.values())
            assert of["disk_bytes"]["score"] > of["value_bytes"]["score"]
            assert ("memory_bytes" in of) == (arm == "redis")
    assert not [path for path in tmp_path.iterdir() if path != tmp_path / "results"]
    place = Place(tmp_path / "benchmarks.md", tmp_path)
    body = SECTIONS["store_size"].make(Results.load(tmp_path / "results"), place)
    assert "| 100 | a folder |" in body and "| **300** | **a folder** |" in body


def test_a_store_of_other_entries_is_told_of(tmp_path: Path) -> None:
    with ZStore(tmp_path / "store") as store:
        store_size.put(store, range(10), 0)
        store_size.get(store, range(10))
        store.delete([store_size.text(3)])
        with pytest.raises(DataError, match="lost"):
            store_size.get(store, range(10))
        for number in (3, 9_000):
            store_size.put(store, [number], 0)
        with pytest.raises(DataError, match="22 entries, not 20"):
            store_size.measure(store, 10, 0)


@pytest.mark.parametrize(
    ("given", "said"), [(["--arms", "disk"], "no arm 'disk'"), (["--sizes", "0"], "at least 1")]
)
def test_options_that_are_refused(
    given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        store_size.main([*given, "--output", str(tmp_path)])
    assert said in capsys.readouterr().err
