"""`ztok eval`: scores of a checkpoint, on the real default model with very short texts."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import PASSAGE

from ztok_rag import ZCompressor, ZReader, cli
from ztok_rag.errors import DataError, ZtokError
from ztok_rag.evaluation.checkpoint import EvalSettings, evaluate_checkpoint
from ztok_rag.evaluation.datasets import Dataset, read_datasets

MILL = "The mill on Reed Lane was built in 1902."
FERRY = "The ferry to Elm Island leaves at nine."
ANSWERS = {"When was the mill built?": "1902", "When does the ferry leave?": "nine"}
QUESTIONS = [
    {"context": MILL, "question": "When was the mill built?", "answers": ["1902", "in 1902"]},
    {"context": MILL, "question": "Where is the mill?", "answers": ["Reed Lane"]},
    {"context": FERRY, "question": "When does the ferry leave?", "answers": ["nine"]},
]
TEXTS = [{"text": "Rain fell all night."}, {"text": PASSAGE}]
SETTINGS = EvalSettings(rates=(2.0, 4.0), batch_size=2, max_new_tokens=4, max_text_tokens=16)


def write(path: Path, records: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("set")
    return [write(folder / "qa.jsonl", QUESTIONS), write(folder / "notes.jsonl", TEXTS)]


def run(compressor: ZCompressor, datasets: Sequence[Dataset], output: Path) -> dict[str, Any]:
    evaluate_checkpoint(compressor, datasets, output, SETTINGS, device="cpu", progress=False)
    results: dict[str, Any] = json.loads((output / "results.json").read_text())
    return results


@pytest.fixture(scope="module")
def finished(
    compressor: ZCompressor, data: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a finished evaluation of both files."""
    output = tmp_path_factory.mktemp("finished")
    run(compressor, read_datasets(data), output)
    return output


def forbid_model_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was run again")

    for name in ("generate", "repeat", "fill", "measure"):
        monkeypatch.setattr(ZReader, name, fail)
    monkeypatch.setattr(ZCompressor, "compress", fail)


def test_results_have_the_shape_of_every_evaluation(data: list[Path], finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert {"command", "commit", "machine", "seed", "checkpoint", "rows"} <= results.keys()
    rows = {(r["task"], r["arm"], r["rate"], r["metric"]): r for r in results["rows"]}
    assert len(rows) == len(results["rows"])
    qa, notes = (f"{path.parent.name}/{path.stem}" for path in data)
    tasks = {(row["benchmark"], row["task"]) for row in results["rows"]}
    repeated, cut = f"{qa} reconstruction", f"{notes} reconstruction"
    assert tasks == {("qa", qa), ("reconstruction", repeated), ("reconstruction", cut)}
    for rate in (2.0, 4.0):
        for metric in ("f1", "exact_match"):
            row = rows[qa, "ztok", rate, metric]
            assert row["n"] == 3 and row["k"] == 1 and 0 <= row["score"] <= 100
            assert row["ci95"][0] <= row["score"] <= row["ci95"][1]
            assert row["prefill_ms"] > 0 and row["ttft_ms"] > 0 and row["kv_bytes"] > 0
        assert row["real_rate"] == pytest.approx(rate, rel=0.1)
        assert rows[repeated, "ztok", rate, "exact_match"]["score"] == 100
        for arm in ("ztok", "repeat"):
            for metric in ("bleu4", "rouge_l", "exact_match", "characters_lost"):
                row = rows[repeated, arm, rate, metric]
                assert row["n"] == 2 and 0 <= row["score"] <= 100
                assert 0 < row["context_tokens"] < row["source_tokens"]
                assert row["bytes_per_source_token"] > 0
                assert row["real_rate"] == pytest.approx(rate, rel=0.1)
    assert rows[qa, "none", None, "f1"]["context_tokens"] == 0
    shares = [key[1:3] for key in rows if key[3] == "share_of_text_reader"]
    if rows[qa, "text-reader", 1.0, "f1"]["score"] > 0:
        assert shares == [(arm, rate) for arm in ("ztok", "ztok-focus") for rate in (2.0, 4.0)]
    else:
        assert not shares
    row = rows[cut, "ztok", 4.0, "bleu4"]
    assert row["truncated"] == 1 and row["source_tokens"] <= 16
    assert "1 of them cut to their first 16 tokens" in results["note"]


def test_a_finished_evaluation_is_not_run_again(
    compressor: ZCompressor,
    data: list[Path],
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = json.loads((finished / "results.json").read_text())["rows"]
    forbid_model_calls(monkeypatch)
    monkeypatch.setattr(ZCompressor, "from_pretrained", lambda *_, **__: compressor)
    arguments = ["--rates", "2,4", "--batch-size", "2", "--max-new-tokens", "4"]
    arguments += ["--max-text-tokens", "16", "--output", str(finished)]
    monkeypatch.setattr(sys, "argv", ["ztok", "eval", *map(str, data), *arguments])
    with pytest.raises(SystemExit) as status:
        cli.main()
    assert status.value.code == 0
    assert json.loads((finished / "results.json").read_text())["rows"] == before
    out = capsys.readouterr().out
    assert "characters_lost" in out and "results.json" in out


def test_known_predictions_get_the_right_scores(
    compressor: ZCompressor, data: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(reader: ZReader, prompts: Sequence[list[Any]], **_: Any) -> list[str]:
        asked = ["".join(s for s in prompt if isinstance(s, str)) for prompt in prompts]
        return [next((a for q, a in ANSWERS.items() if q in text), "a pond") for text in asked]

    def forget_the_end(_: Any, zs: Sequence[Any], **__: Any) -> list[str]:
        return [MILL if z.spans[-1, 1] == len(MILL) else "The ferry" for z in zs]

    monkeypatch.setattr(ZReader, "generate", answer)
    monkeypatch.setattr(ZCompressor, "decompress", forget_the_end)
    monkeypatch.setattr(ZReader, "repeat", lambda _, zs, **__: [FERRY] * len(zs))
    results = run(compressor, read_datasets(data[:1]), tmp_path)
    scores = {(r["benchmark"], r["arm"], r["metric"]): r["score"] for r in results["rows"]}
    assert scores["qa", "ztok", "f1"] == pytest.approx(200 / 3, abs=1e-3)
    assert scores["qa", "none", "exact_match"] == pytest.approx(200 / 3, abs=1e-3)
    assert scores["reconstruction", "ztok", "exact_match"] == 50
    assert scores["reconstruction", "repeat", "exact_match"] == 50
    lost = 100 * (len(FERRY) - len("The ferry")) / len(FERRY)
    assert scores["reconstruction", "ztok", "characters_lost"] == pytest.approx(lost / 2, abs=1e-3)
    # Two of the ferry's eight words: precision 1, recall a quarter.
    rouge = (1 + 2 * 0.25 / 1.25) / 2
    assert scores["reconstruction", "ztok", "rouge_l"] == pytest.approx(100 * rouge, abs=1e-3)


def test_an_interrupted_reconstruction_goes_on(
    compressor: ZCompressor, data: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    stop_at = 2

    def bring_back(_: Any, zs: Sequence[Any], **__: Any) -> list[str]:
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        calls.append(len(zs))
        return ["The mill"] * len(zs)

    monkeypatch.setattr(ZCompressor, "decompress", bring_back)
    monkeypatch.setattr(ZReader, "repeat", bring_back)
    datasets = read_datasets(data, ["reconstruction"])
    with pytest.raises(KeyboardInterrupt):
        run(compressor, datasets, tmp_path)
    done = (tmp_path / "predictions.jsonl").read_text()
    assert done.count("\n") == sum(calls) == 4
    assert not (tmp_path / "results.json").exists()
    stop_at = 100
    run(compressor, datasets, tmp_path)
    assert sum(calls) == 16
    assert (tmp_path / "predictions.jsonl").read_text().startswith(done)


def test_other_settings_are_refused(
    compressor: ZCompressor, data: list[Path], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_model_calls(monkeypatch)
    other = EvalSettings(rates=(2.0,), max_text_tokens=20, max_new_tokens=4)
    with pytest.raises(DataError, match="max_text_tokens was 16 and is now 20"):
        evaluate_checkpoint(compressor, read_datasets(data), finished, other, progress=False)


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["missing.jsonl"], "cannot read missing.jsonl"),
        (["--rates", "4,0.5"], "rate=0.5: did you mean rate=2?"),
        (["--rates", "four"], "expected numbers separated by commas, got 'four'"),
        (["--limit", "0"], "--limit must be at least 1, not 0"),
        (["--tasks", "speed"], "unknown task 'speed'"),
    ],
)
def test_errors_are_one_line_on_stderr(
    data: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    cause: str,
) -> None:
    output = tmp_path / "out"
    argv = ["ztok", "eval", str(data[0]), *arguments, "--output", str(output)]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as status:
        cli.main()
    assert status.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("ztok: ") and error.count("\n") == 1 and cause in error
    assert not output.exists()


def test_missing_metric_packages_are_told_before_anything_runs(
    compressor: ZCompressor, data: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_model_calls(monkeypatch)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(ZtokError, match=r"rouge-score.*pip install ztok-rag\[bench\]"):
        run(compressor, read_datasets(data), tmp_path / "out")
