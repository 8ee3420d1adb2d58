"""`benchmarks/scale.py`, `scale_probe.py` and `determinism.py`, small, and what is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import BAKERY, PASSAGE
from documents import filled

import determinism
import scale
import scale_probe
from ztok_rag import ZCompressor


def rows_of(output: Path) -> dict[tuple[str, int, str], dict[str, Any]]:
    rows = json.loads((output / "results.json").read_text())["rows"]
    return {(row["arm"], row.get("chunks", 0), row["metric"]): row for row in rows}


def test_an_index_grows_and_goes_on_where_it_stood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "OPTIMIZE_FROM", 2_000)
    output = tmp_path / "results" / "scale"
    options = ["--work", str(tmp_path / "work"), "--output", str(output), "--memory", "1000"]
    scale.main([*options, "--chunks", "1000"])
    first = rows_of(output)
    scale.main([*options, "--chunks", "2000"])
    rows = rows_of(output)
    assert first.items() <= rows.items()
    assert rows["disk", 2000, "recall_at_10"]["score"] == 100
    assert rows["disk", 2000, "vector_bytes"]["score"] > 2_000 * 4 * scale.DIMENSION
    assert rows["disk", 2000, "query_optimized_ms"]["n"] == scale.QUESTIONS
    assert rows["memory", 1000, "insert_ms"]["score"] > 0
    peak = rows["disk", 2000, "peak_rss_bytes"]["score"]
    assert 2**26 < peak < 2**34
    (arm,) = {arm for arm, chunks, _ in rows if chunks == 2000}
    assert arm == "disk"

    monkeypatch.setattr(scale_probe, "ADDITIONS", 1)
    monkeypatch.setattr(
        scale_probe, "in_a_process", lambda step, work, seed: scale_probe.take(step, work, seed)
    )
    probe = tmp_path / "results" / "scale_probe"
    scale_probe.main(["--work", str(tmp_path / "work"), "--output", str(probe)])
    probed = rows_of(probe)
    assert probed["disk", 2000, "search_cpu_ms"]["n"] == scale.QUESTIONS
    assert probed["disk", 2000, "exact_recall_at_10"]["score"] == 100
    assert scale.open_corpus("disk", tmp_path / "work" / "disk").chunk_count == 3_000
    assert probed["disk", 2000, "add_peak_bytes"]["score"] > 2**26

    made = filled(tmp_path / "results", tmp_path, "scale", "scale_probe", "billion")
    assert "![An index as it grows](scale.png)" in made and (tmp_path / "scale.png").is_file()
    assert "| **2,000** | **on disk** |" in made and "| 1,000 | in memory |" in made
    assert "| open it, peak MiB |" in made
    assert "TB" not in made  # which takes the rate of compression, too


def test_chunks_depend_on_the_seed_alone() -> None:
    one, again, other = scale.Made(0), scale.Made(0), scale.Made(1)
    assert [n.to_dict() for n in one.nodes(1000)] == [n.to_dict() for n in again.nodes(1000)]
    assert one.nodes(0)[0].get_content() != other.nodes(0)[0].get_content()
    assert len({n.node_id for n in one.nodes(0)} | {n.node_id for n in one.nodes(1000)}) == 2_000


def test_what_depends_on_the_batch(
    tmp_path: Path, compressor: ZCompressor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(determinism.ZCompressor, "from_pretrained", lambda **_: compressor)
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"context": text}) + "\n" for text in (BAKERY, PASSAGE)))
    output = tmp_path / "results" / "determinism"
    options = ["--data", str(data), "--output", str(output), "--dtypes", "float32"]
    determinism.main(options)
    rows = rows_of(output)
    assert rows["batches", 0, "texts_differ"]["n"] == 2
    tokens = sum(map(compressor.count_tokens, (BAKERY, PASSAGE)))
    assert rows["batches", 0, "tokens_differ"]["n"] == tokens
    made = filled(tmp_path / "results", tmp_path, "determinism")
    assert "| together, by two threads | float32 |" in made


@pytest.mark.parametrize("given", ["1500", "0", "many"])
def test_chunks_come_in_thousands(
    given: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        scale.main(["--chunks", given, "--work", str(tmp_path), "--output", str(tmp_path)])
    assert "--chunks" in capsys.readouterr().err
