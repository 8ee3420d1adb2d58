"""Lossless files give back every character, or say why not."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import PASSAGE, ztok

from ztok_rag import SequenceError, ZCompressor, ZSequence
from ztok_rag.codec.lossless import Coding, LosslessText, parse

TEXTS = {
    "passage": PASSAGE,
    "line ends": "One.\r\nTwo.\rThree.\n\n\tFour  \n",
    "no final newline": "One line\nand another",
    "unicode": "\ufeffÅngström, 日本語のテキスト 😀 e\u0301 \u00a0 \u2028 مرحبا.\n",
    "special tokens": "<|im_start|>user says <|endoftext|> and <|im_end|>",
    "marker and NUL": "A \x00 byte, \uffff and \ufffd.",
    "one letter": "x",
    "spaces": "   word  ,  .  'll n't  \t\t ",
    "several windows": (PASSAGE + "\n\n") * 12,
}


@pytest.mark.parametrize("rate", [1, 4, 64])
def test_every_text_comes_back(compressor: ZCompressor, rate: float) -> None:
    sequences = compressor.compress(list(TEXTS.values()), rate)
    for (name, text), z in zip(TEXTS.items(), sequences, strict=True):
        data = LosslessText.pack(text, z, compressor.tokenizer).to_bytes()
        back = LosslessText.from_bytes(data)
        assert back.text(compressor.tokenizer) == text, name
        assert back.z == z


def test_tokens_that_z_tokens_name_are_not_stored_again(compressor: ZCompressor) -> None:
    text = f"{PASSAGE} Nobody has painted the door of the oil store since then."
    sizes = []
    for rate in (1, 2, 8):
        (z,) = compressor.compress([text], rate)
        both = LosslessText.pack(text, z, compressor.tokenizer)
        assert both.needs_tokenizer
        sizes.append(len(both.packed))
    assert sizes == sorted(sizes) and sizes[0] < 20
    assert sizes[-1] < len(gzip.compress(text.encode(), 9))


@pytest.mark.parametrize("text", [PASSAGE, "A \u0378 x" * 40])
def test_every_flipped_byte_and_every_cut_is_noticed(compressor: ZCompressor, text: str) -> None:
    (z,) = compressor.compress([text], 16)
    data = LosslessText.pack(text, z, compressor.tokenizer).to_bytes()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x40
        for broken in (bytes(damaged), data[:position]):
            with pytest.raises(SequenceError):
                parse(broken)


class LossyTokenizer:
    """Does not give back what it takes."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [7] * 3}

    def decode(self, ids: list[int], **_: Any) -> str:
        return "something else"


def test_a_coding_that_fails_is_never_used(
    compressor: ZCompressor, monkeypatch: pytest.MonkeyPatch
) -> None:
    (z,) = compressor.compress([PASSAGE], 4)
    both = LosslessText.pack(PASSAGE, z, LossyTokenizer())
    assert both.coding is not Coding.TOKENS and both.text() == PASSAGE
    packings = dict.fromkeys((Coding.LZMA, Coding.BZ2, Coding.DEFLATE), (bytes, lambda _: b"no"))
    monkeypatch.setattr("ztok_rag.codec.lossless._BYTE_CODINGS", packings)
    with pytest.raises(SequenceError, match="does not come back"):
        LosslessText.pack(PASSAGE, z, LossyTokenizer())
    with pytest.raises(SequenceError, match="not Unicode"):
        LosslessText.pack("\ud800", z, compressor.tokenizer)


def test_another_tokenizer_is_refused(compressor: ZCompressor) -> None:
    (z,) = compressor.compress([PASSAGE], 4)
    both = LosslessText.pack(PASSAGE, z, compressor.tokenizer)
    with pytest.raises(SequenceError, match="base LLM it was compressed with"):
        both.text(LossyTokenizer())
    with pytest.raises(SequenceError, match="tokenizer"):
        both.text()


def test_file(compressor: ZCompressor, tmp_path: Path) -> None:
    (z,) = compressor.compress([PASSAGE], 4)
    path = tmp_path / "folder" / "text.zt"
    LosslessText.pack(PASSAGE, z, compressor.tokenizer).save(path)
    assert LosslessText.load(path).text(compressor.tokenizer) == PASSAGE
    assert ZSequence.load(path) == z
    path.write_bytes(path.read_bytes()[:-3])
    for load in (LosslessText.load, ZSequence.load):
        with pytest.raises(SequenceError, match=r"text\.zt.*truncated"):
            load(path)
    z.save(path)
    with pytest.raises(SequenceError, match=r"text\.zt.*--lossless"):
        LosslessText.load(path)


def test_commands(tmp_path: Path) -> None:
    source, codes, back = (tmp_path / name for name in ("in.txt", "out.zt", "back.txt"))
    content = f"\ufeff{PASSAGE}\r\n\r\n\tA tab, 日本 😀, and no end".encode()
    source.write_bytes(content)
    done = ztok("compress", str(source), "-o", str(codes), "--lossless")
    assert done.returncode == 0, done.stderr
    assert f"{codes.stat().st_size} in all" in done.stdout
    assert f"{len(gzip.compress(content, 9))} by gzip" in done.stdout

    done = ztok("decompress", str(codes), "-o", str(back))
    assert done.returncode == 0, done.stderr
    assert back.read_bytes() == content
    command = [sys.executable, "-m", "ztok_rag.cli", "decompress", str(codes)]
    assert subprocess.run(command, capture_output=True, check=True).stdout == content

    page = tmp_path / "page.html"
    done = ztok("view", str(codes), "-o", str(page), "--reconstruct-tokens", "0")
    assert done.returncode == 0, done.stderr
    assert f"-> {len(ZSequence.load(codes))} Z-tokens" in done.stdout
    assert "A tab, 日本" in page.read_text(encoding="utf-8").replace("<b>", "").replace("</b>", "")

    data = codes.read_bytes()
    codes.write_bytes(data[:-1])
    for arguments in (("decompress", str(codes)), ("view", str(codes), "-o", str(page))):
        done = ztok(*arguments)
        assert done.returncode == 1 and not done.stdout
        assert "out.zt" in done.stderr and "truncated" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
