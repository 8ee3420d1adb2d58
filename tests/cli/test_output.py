"""What commands write, and what they say before any model is loaded if they cannot."""

from __future__ import annotations

import io
import os
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ztok_rag import cli
from ztok_rag.cli.output import check_file, check_folder, literal, write_file
from ztok_rag.errors import ZtokError


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("ztok_rag.codec.compressor.ZCompressor.from_pretrained", load)
    monkeypatch.setattr("ztok_rag.codec.base.BaseLM.load", load)


@pytest.mark.parametrize("case", ["folder", "below a file", "nowhere", "long"])
def test_a_file_that_cannot_be_written_is_named_before_the_work(
    case: str, tmp_path: Path, no_model: None
) -> None:
    source = tmp_path / "in.txt"
    source.write_text("Some words.", encoding="utf-8")
    output = {
        "folder": tmp_path,
        "below a file": source / "deep" / "out",
        "nowhere": Path("/proc/none/out"),
        "long": tmp_path / ("x" * 300),
    }[case]
    if case == "nowhere" and not Path("/proc").is_dir():
        pytest.skip("there is no /proc")
    for command in ("compress", "view"):
        done = CliRunner().invoke(cli.app, [command, str(source), "-o", str(output)])
        assert isinstance(done.exception, ZtokError)
        assert str(done.exception).startswith("cannot write ")
        assert "; name a file" in str(done.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_a_folder_that_cannot_be_written_is_named_before_the_work(
    tmp_path: Path, no_model: None
) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    source = texts / "in.txt"
    source.write_text("Some words.", encoding="utf-8")
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "Some words."}\n', encoding="utf-8")
    bad = str(source / "out")
    for arguments in (
        ["eval", str(data), "--output", bad],
        ["train", "--data", str(data), "--output", bad],
        ["index", str(texts), "--store", bad],
        ["average", "a", "b", "-o", bad],
    ):
        done = CliRunner().invoke(cli.app, arguments)
        assert str(done.exception).startswith("cannot write into "), done.exception
        assert "; name a folder" in str(done.exception)


def test_what_can_be_made_is_good_and_is_not_made(tmp_path: Path) -> None:
    check_file(tmp_path / "a" / "b" / "out")
    check_file(Path("-"))
    check_folder(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ZtokError, match="its name is not UTF-8; name another"):
        check_folder(tmp_path / "caf\udce9")
    with pytest.raises(ZtokError, match="null byte; name a file"):
        check_file(tmp_path / "a\0b")


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/fd/1"])
def test_standard_output_gets_the_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(held, "ascii"))
    check_file(Path(name))
    write_file(Path(name), b"\xff\x00")
    assert held.getvalue() == b"\xff\x00"


def test_a_named_pipe_gets_the_bytes(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("there are no named pipes")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    check_file(pipe)
    write_file(pipe, b"codes")
    reader.join()
    assert found == [b"codes"] and pipe.is_fifo()


def test_a_tilde_is_a_character(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert literal(Path("~x")) == tmp_path / "~x" and literal(Path("x/~")) == Path("x/~")
