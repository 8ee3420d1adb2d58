"""The `ztok` command on the shipped checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import PASSAGE, ztok

from ztok_rag import ZCompressor, ZSequence
from ztok_rag.codec.lossless import LosslessText


def test_compress_then_decompress(tmp_path: Path, compressor: ZCompressor) -> None:
    source, codes, back = (tmp_path / name for name in ("in.txt", "out.zt", "back.txt"))
    source.write_text(PASSAGE)
    done = ztok("compress", str(source), "-o", str(codes), "--rate", "1")
    assert done.returncode == 0, done.stderr
    z = ZSequence.load(codes)
    assert f"{z.source_tokens} tokens -> {len(z)} Z-tokens" in done.stdout
    assert z.fingerprint == compressor.fingerprint
    done = ztok("decompress", str(codes), "-o", str(back))
    assert done.returncode == 0, done.stderr
    assert "lighthouse" in back.read_text()


@pytest.mark.parametrize("case", ["missing", "binary", "empty", "rate", "codes", "nothing"])
def test_errors_are_one_line_and_nothing_is_written(tmp_path: Path, case: str) -> None:
    source, codes = tmp_path / "in.txt", tmp_path / "out.zt"
    content = {"binary": b"\xff\xfe\x00", "empty": b" \n"}.get(case, b"Some words here.")
    if case != "missing":
        source.write_bytes(content)
    if case == "nothing":
        done = ztok("train", "--output", str(codes))
    elif case == "codes":
        done = ztok("decompress", str(source), "-o", str(codes))
    else:
        rate = "0" if case == "rate" else "4"
        done = ztok("compress", str(source), "-o", str(codes), "--rate", rate)
    assert done.returncode != 0
    assert done.stderr.startswith("ztok: ") and len(done.stderr.strip().splitlines()) == 1
    assert not codes.exists()


@pytest.mark.parametrize("case", ["folder", "below a file", "device"])
def test_unwritable_output_is_one_line(tmp_path: Path, compressor: ZCompressor, case: str) -> None:
    source, codes = tmp_path / "in.txt", tmp_path / "in.zt"
    source.write_text("Some words here.")
    (z,) = compressor.compress(["Some words here."], 2)
    LosslessText.pack("Some words here.", z, compressor.tokenizer).save(codes)
    output = {"folder": tmp_path, "below a file": source / "out", "device": Path(os.devnull)}[case]
    for command, file in (("compress", source), ("decompress", codes)):
        done = ztok(command, str(file), "-o", str(output))
        assert done.returncode == 1 and not done.stdout
        assert done.stderr.startswith(f"ztok: cannot write {output}: ")
        assert "; name a file" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "in.zt"]


def test_info_and_help() -> None:
    done = ztok("info")
    assert done.returncode == 0 and "SmolLM2-135M-Instruct" in done.stdout
    assert "anchor codes" in done.stdout
    done = ztok("info", ZTOK_DTYPE="float32")
    assert "(float32)" in done.stdout
    done = ztok("info", ZTOK_DTYPE="float8")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("ztok: ZTOK_DTYPE is bfloat16 or float32, not float8")
    done = ztok("train", "--help")
    assert done.returncode == 0 and "--rates" in done.stdout
