"""Reading files once, and names as they are shown."""

from __future__ import annotations

import io
import os
import sys
import threading
from pathlib import Path

import pytest

from ztok_rag.errors import DataError
from ztok_rag.files import (
    DIGESTS,
    check_digests,
    is_pipe,
    read_bytes,
    read_text,
    repair,
    show,
    write_digests,
)


def test_text_has_no_mark_and_line_feeds(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        path.write_bytes("é\r\n→\r😀\n".encode(encoding))
        assert read_text(path) == "é\n→\n😀\n"


def test_a_pipe_is_opened_once(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("there are no named pipes")
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(b"once",))
    writer.start()
    assert read_bytes(path) == b"once" and is_pipe(path)
    writer.join()
    assert is_pipe("-") and not is_pipe(tmp_path / "none")


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"given\xff")))
    assert read_bytes("-") == b"given\xff"
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match="standard input is closed"):
        read_bytes("-")


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("none", "No such file"),
        (".", "Is a directory"),
        ("a\0b", "null byte"),
        ("x" * 300, "name too long"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, cause: str) -> None:
    with pytest.raises(DataError, match=f"cannot read .*{cause}.*; name a file"):
        read_bytes(tmp_path / name)


def test_names_and_questions_are_repaired() -> None:
    assert repair("café 😀") == "café 😀"
    assert repair(b"caf\xe9".decode("ascii", "surrogateescape")) == "caf\ufffd"
    # An ASCII locale hands over what is UTF-8 in truth.
    assert repair("café".encode().decode("ascii", "surrogateescape")) == "café"
    assert repair("a\ud835b") == "a\ufffdb" and repair("\ud83d\ude00\ud83d") == "😀\ufffd"
    assert show(Path("a\nb\x1b[0m\udcff")) == "a\ufffdb\ufffd[0m\ufffd"


def test_digests_find_what_was_changed(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"1")
    (tmp_path / "two").write_bytes(b"2")
    check_digests(tmp_path)  # none were written
    write_digests(tmp_path)
    check_digests(tmp_path)
    (tmp_path / "more").write_bytes(b"what is added does not count")
    check_digests(tmp_path)
    (tmp_path / "one").write_bytes(b"2")
    with pytest.raises(ValueError, match="one is not the file that was written"):
        check_digests(tmp_path)
    (tmp_path / "one").unlink()
    with pytest.raises(ValueError, match="one is not"):
        check_digests(tmp_path)
    (tmp_path / DIGESTS).write_text("{}")
    with pytest.raises(ValueError, match="holds no digests"):
        check_digests(tmp_path)
