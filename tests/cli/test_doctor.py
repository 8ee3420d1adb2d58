"""`ztok doctor` and its checks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from ztok_rag import ZCompressor, cli
from ztok_rag.cli import checks
from ztok_rag.cli.checks import Checks, check_packages, find
from ztok_rag.codec.serialization import write_atomic
from ztok_rag.errors import CheckpointError, ZtokError


def fail(error: Exception) -> Callable[..., str]:
    def check(*_: object) -> str:
        raise error

    return check


def test_a_sound_installation(
    compressor: ZCompressor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "load_compressor", lambda *_: compressor)
    store = tmp_path / "cache" / "store"
    monkeypatch.setattr(Checks, "_default_store", staticmethod(lambda: store))
    done = CliRunner().invoke(cli.app, ["doctor"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert len(lines) == 11 and all(": " in line and " ok" in line for line in lines)
    assert f"{store}, not made yet" in done.output and "back exactly" in done.output
    assert compressor.fingerprint in done.output and "Marta Lindqvist" in lines[-1]
    assert not store.parent.exists()


def test_no_failure_stops_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "check_embedding", fail(ImportError("no module\nat all")))
    monkeypatch.setattr(Checks, "check_cache", fail(PermissionError(13, "Permission denied", "c")))
    unloaded = cached_property(fail(CheckpointError("the base LLM is not installed; do it.")))
    unloaded.__set_name__(Checks, "compressor")
    monkeypatch.setattr(Checks, "compressor", unloaded)
    done = CliRunner().invoke(cli.app, ["doctor", "--checkpoint", "none", "--store", "none"])
    assert done.exit_code == 1
    found = {line[:18].strip(): line[19:] for line in done.output.splitlines()}
    assert len(found) == 11
    assert found["cache folder"].startswith("problem: c: Permission denied; change")
    assert found["store"].startswith("problem: none is not a folder; make an index")
    assert found["checkpoint"].startswith("problem: none is not a ztok checkpoint")
    assert found["base LLM"] == "problem: the base LLM is not installed; do it."
    assert found["embedding model"].startswith("problem: ImportError: no module; install")
    assert (
        found["compression"]
        == found["answer"]
        == ("problem: not tried, as there is no base LLM; mend that first.")
    )


def test_packages_are_compared_with_what_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_packages().startswith("ztok-rag ")
    monkeypatch.setattr(
        checks, "requires", lambda _: ["torch>=99", "nothing>=1", "numpy", 'x>9; extra == "dev"']
    )
    with pytest.raises(ZtokError, match=r"torch is .*, nothing is not installed; run `pip install"):
        check_packages()
    monkeypatch.setattr(checks, "requires", lambda _: ["numpy"])
    assert check_packages().endswith("and 1 packages at versions that it declares")


def test_stores_and_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(ZtokError, match="holds no index and no store; make one"):
        Checks(store=tmp_path / "other").check_store()
    write_atomic(tmp_path / "other" / "cache.db", b"")
    assert Checks(store=tmp_path / "other").check_store().endswith("other, a store")
    (tmp_path / "file").touch()
    with pytest.raises(ZtokError, match="is not a folder"):
        Checks(store=tmp_path / "file").check_store()
    usage = SimpleNamespace(free=2**20)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ZtokError, match=r"only 0\.0 GiB are free in .*; make room"):
        Checks(store=tmp_path).check_room()


def test_an_index_of_another_checkpoint_is_a_problem(tmp_path: Path) -> None:
    manifest = (
        '{"format": 2, "rate": 4, "chunk_size": 256, "chunk_overlap": 0, "slots": 16, '
        '"fingerprint": "0123456789abcdef", "embed_model": "x", "embed_dimension": 3, '
        '"vector_store": "", "revision": ""}'
    )
    (tmp_path / "ztok.json").write_text(manifest, encoding="utf-8")
    finding = find("store", Checks(store=tmp_path).check_store)
    assert not finding.ok and "compressed by checkpoint 0123456789abcdef" in finding.text
    (tmp_path / "ztok.json").write_text("{", encoding="utf-8")
    finding = find("store", Checks(store=tmp_path).check_store)
    assert not finding.ok and "is damaged" in finding.text
