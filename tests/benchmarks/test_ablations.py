"""`benchmarks/ablations.py` on the real default model, and its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import BAKERY, PASSAGE

import ablations
from result_rows import Results
from tables.markdown import Place
from tables.reading import ablations_section
from ztok_rag import ZCompressor
from ztok_rag.codec.compressed_text import CompressedText


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "mine" / "data.jsonl"
    path.parent.mkdir()
    records = [
        {"context": PASSAGE, "question": "Who was the last keeper?", "answers": ["Tomas Berg"]},
        {"context": BAKERY, "question": "When does it open?", "answers": ["six", "at six"]},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_every_variant_is_scored_and_compared(
    data: Path, tmp_path: Path, compressor: ZCompressor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablations, "load_compressor", lambda options: compressor)
    output = tmp_path / "results" / "ablations"
    arguments = ["--data", str(data), "--output", str(output), "--rates", "4"]
    ablations.main(arguments)
    rows = json.loads((output / "results.json").read_text())["rows"]
    f1 = {row["arm"]: row for row in rows if row["metric"] == "f1"}
    assert f1.keys() == {"text", *ablations.VARIANTS}
    assert f1["text"]["real_rate"] == 1 and f1["default"]["real_rate"] > 3.5
    compared = {row["arm"] for row in rows if row["metric"] == "f1_minus_default"}
    assert compared == ablations.VARIANTS.keys() - {"default"}
    predictions = (output / "predictions.jsonl").read_bytes()
    ablations.main(arguments)  # which finds all answers there
    assert (output / "predictions.jsonl").read_bytes() == predictions

    place = Place(tmp_path / "benchmarks.md", tmp_path)
    written = ablations_section(Results.load(tmp_path / "results"), place)
    assert "### mine/data, 2 questions" in written
    assert all(variant.what in written for variant in ablations.VARIANTS.values())


def test_variants_change_what_they_say(compressor: ZCompressor) -> None:
    (text,) = compressor.compress_all_rates([PASSAGE])
    default, even, half = (
        ablations.VARIANTS[name].read(text, 8.0, compressor.slots)
        for name in ("default", "even-spans", "half-slots")
    )
    assert default == CompressedText.at(text, 8.0, compressor.slots)
    assert len(even) == len(default) and max(even.sizes) < max(default.sizes)
    assert half.codes.shape[1] == compressor.slots // 2
    before = compressor.model.embed_sequence(default)
    with ablations.VARIANTS["no-mlp"].around(compressor):
        assert not before.equal(compressor.model.embed_sequence(default))
    assert before.equal(compressor.model.embed_sequence(default))
