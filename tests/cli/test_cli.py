"""The `ztok` command on the shipped checkpoint."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PASSAGE, ztok

from ztok_rag import ZCompressor, ZSequence
from ztok_rag.cli.codes import _coded_by_llm
from ztok_rag.codec.llm_code import LosslessText

EXACT = PASSAGE + "\r\n\tA caf\u00e9, \u65e5\u672c \U0001f600 <|im_end|>  \r\n\n"


def test_compress_then_decompress(tmp_path: Path, compressor: ZCompressor) -> None:
    source, codes, back = (tmp_path / name for name in ("in.txt", "out.zt", "back.txt"))
    source.write_bytes(EXACT.encode())
    done = ztok("compress", str(source), "-o", str(codes), "--rate", "8")
    assert done.returncode == 0, done.stderr
    z = ZSequence.load(codes, compressor.model.token_code)
    assert f"{z.source_tokens} tokens -> {len(z)} Z-tokens" in done.stdout
    assert z.fingerprint == compressor.fingerprint
    done = ztok("decompress", str(codes), "-o", str(back))
    assert done.returncode == 0 and not done.stderr
    assert back.read_bytes() == EXACT.encode()


def test_lossless_files_are_small_and_exact(tmp_path: Path, compressor: ZCompressor) -> None:
    source, codes, back = (tmp_path / name for name in ("in.txt", "out.zt", "back.txt"))
    source.write_bytes(EXACT.encode())
    done = ztok("compress", str(source), "-o", str(codes), "--rate", "8", "--lossless")
    assert done.returncode == 0 and not done.stderr, done.stderr
    (z,) = compressor.compress([EXACT], 8)
    assert codes.stat().st_size < len(z.to_bytes()) / 2
    assert f"{codes.stat().st_size} bytes" in done.stdout
    done = ztok("decompress", str(codes), "-o", str(back))
    assert done.returncode == 0 and not done.stderr
    assert back.read_bytes() == EXACT.encode()
    done = ztok("view", str(codes), "-o", str(back), "--reconstruct-tokens", "0")
    assert done.returncode == 0 and f"-> {len(z)} Z-tokens" in done.stdout, done.stderr
    codes.write_bytes(codes.read_bytes()[:-2])
    done = ztok("decompress", str(codes))
    assert done.returncode == 1 and not done.stdout
    assert "on a machine of the same kind" in done.stderr and done.stderr.count("\n") == 1


def test_z_tokens_are_written_where_the_llm_code_does_not_decode(
    compressor: ZCompressor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(LosslessText, "encode", lambda *arguments: None)
    (z,) = compressor.compress([PASSAGE], 4)
    assert _coded_by_llm(PASSAGE, z, compressor, 4.0) == z.to_bytes()
    assert capsys.readouterr().err.startswith("ztok: this machine does not decode")


def test_pipes_are_opened_once(tmp_path: Path) -> None:
    codes = tmp_path / "out.zt"
    done = ztok_piped("compress", "-", "-o", str(codes), "--rate", "2", given=EXACT.encode())
    assert done.returncode == 0, done.stderr
    for name in ("-", "/dev/stdin"):
        done = ztok_piped("decompress", name, given=codes.read_bytes())
        assert done.stdout == EXACT.encode()


def test_what_was_left_out_is_told(tmp_path: Path) -> None:
    source, codes, back = (tmp_path / name for name in ("in.txt", "out.zt", "back.txt"))
    source.write_text(PASSAGE)
    done = ztok("compress", str(source), "-o", str(codes), "--rate", "32", "--lossless")
    assert done.returncode == 1 and "give a --rate of at most 16" in done.stderr
    assert not codes.exists()
    done = ztok("compress", str(source), "-o", str(codes), "--rate", "32")
    assert done.returncode == 0, done.stderr
    done = ztok("decompress", str(codes), "-o", str(back))
    assert done.returncode == 0 and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("ztok: ") and "tokens were left out" in done.stderr
    assert back.read_text() and back.read_text() != PASSAGE


def test_codes_of_another_checkpoint_are_refused(tmp_path: Path, compressor: ZCompressor) -> None:
    codes = tmp_path / "out.zt"
    (z,) = compressor.compress([PASSAGE])
    dataclasses.replace(z, fingerprint="0" * 16).save(codes)
    for data, cause in (
        (codes.read_bytes(), "made by checkpoint 0000000000000000"),
        (codes.read_bytes()[:-3], "truncated or altered"),
        (b"ZT2\n" + bytes(40), "of another version"),
    ):
        codes.write_bytes(data)
        for command in ("decompress", "view"):
            done = ztok(command, str(codes), "-o", str(tmp_path / "out"))
            assert done.returncode == 1 and cause in done.stderr
            assert done.stderr.startswith(f"ztok: {codes}: ") and done.stderr.count("\n") == 1


def ztok_piped(*arguments: str, given: bytes) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "ztok_rag.cli", *arguments]
    return subprocess.run(command, input=given, capture_output=True, timeout=300, check=False)


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
    z.save(codes)
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
    assert "up to 16 tokens" in done.stdout and "after 20 layers" in done.stdout
    assert "LoRA adapter on all-MiniLM-L6-v2" in done.stdout
    done = ztok("info", ZTOK_DTYPE="float32")
    assert "(float32)" in done.stdout
    done = ztok("info", ZTOK_DTYPE="float8")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("ztok: ZTOK_DTYPE is bfloat16 or float32, not float8")
    done = ztok("train", "--help")
    assert done.returncode == 0 and "--rates" in done.stdout
