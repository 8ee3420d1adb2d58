"""The text files of a folder: what is read, and what is left out and named."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ztok_rag import cli
from ztok_rag.cli.folder import read_folder
from ztok_rag.errors import DataError

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs links, pipes and names of POSIX")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "$HOME"
    (folder / "deep").mkdir(parents=True)
    (folder / "plain.txt").write_bytes("One → two.\r\n".encode())
    (folder / "deep" / "mark.md").write_bytes("\ufeffThree.".encode())
    (folder / "wide.txt").write_bytes("Four.".encode("utf-16"))
    (folder / ".hidden").write_text("secret", encoding="utf-8")
    return folder


def test_texts_of_all_encodings_are_read(folder: Path, tmp_path: Path) -> None:
    found = read_folder(folder, tmp_path / "store")
    assert found.texts == {
        "plain.txt": "One → two.\n",
        "wide.txt": "Four.",
        "deep/mark.md": "Three.",
    }
    assert found.left_out == [] and found.report() == ""


@POSIX
def test_what_is_no_text_is_left_out_and_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "binary").write_bytes(b"\x80\x00")
    (folder / "zeros").write_bytes(b"a\x00")
    (folder / "empty").touch()
    (folder / "loop").symlink_to("loop")
    (folder / "around").symlink_to(".")
    (folder / "broken").symlink_to("nothing")
    (folder / "closed").write_text("Words.", encoding="utf-8")
    os.mkfifo(folder / "pipe")
    monkeypatch.chdir(folder)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    found = read_folder(folder, tmp_path / "store")
    assert len(found.texts) == 3
    assert dict(found.left_out) == {
        "around": "a link to a folder",
        "binary": "not UTF-8 text",
        "broken": "a link that leads nowhere",
        "closed": "cannot be read: Permission denied",
        "empty": "no words",
        "loop": "a link that leads nowhere",
        "pipe": "not a regular file",
        "socket": "not a regular file",
        "zeros": "binary",
    }
    report = found.report()
    assert report.startswith("left out 9 files: around (a link to a folder), binary (not UTF-8")
    assert report.endswith(", and 4 more.")


@POSIX
def test_names_that_are_not_utf_8_are_shown_replaced(folder: Path, tmp_path: Path) -> None:
    for name in (b"caf\xe9", b"caf\xe8"):
        try:
            (folder / os.fsdecode(name)).write_text("Five.", encoding="utf-8")
        except OSError:
            pytest.skip("the file system takes no such names")
    found = read_folder(folder, tmp_path / "store")
    assert found.texts["caf\ufffd"] == "Five."
    assert found.left_out == [("caf\ufffd", "shows as the name of another file")]


def test_a_store_inside_does_not_count(folder: Path) -> None:
    (folder / "store" / "deep").mkdir(parents=True)
    (folder / "store" / "deep" / "a.txt").write_text("Words.", encoding="utf-8")
    assert len(read_folder(folder, folder / "store").texts) == 3


def test_nothing_left_is_an_error_that_names_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    done = CliRunner().invoke(cli.app, ["index", str(tmp_path), "--store", str(tmp_path / "s")])
    assert isinstance(done.exception, DataError)
    assert "has no text files (left out 1 file: empty.txt (no words))" in str(done.exception)
    assert not (tmp_path / "s").exists()
