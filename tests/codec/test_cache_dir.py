"""Where the cache folder lies, on machines of all kinds."""

from __future__ import annotations

from pathlib import Path

import pytest

from ztok_rag import ZtokError
from ztok_rag.codec.base import cache_dir
from ztok_rag.inputs import absolute_path


def test_variables_name_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZTOK_CACHE", "mine-of-this-test")
    assert cache_dir() == tmp_path / "mine-of-this-test"
    monkeypatch.chdir("/")
    assert cache_dir() == tmp_path / "mine-of-this-test"

    monkeypatch.delenv("ZTOK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "ztok-rag"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home" / ".cache" / "ztok-rag"


def test_without_a_home_folder_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object) -> str:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ZTOK_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setattr(Path, "expanduser", nobody)
    with pytest.raises(ZtokError, match="set ZTOK_CACHE"):
        cache_dir()
    with pytest.raises(ZtokError, match="no home folder for ~/store"):
        absolute_path("~/store")
