"""The file format of a `ZSequence`: exact, compact, and proof against damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ztok_rag import SequenceError, ZSequence, ZtokError


def make_sequence(n: int = 50, depth: int = 4, seed: int = 0) -> ZSequence:
    rng = np.random.default_rng(seed)
    ends = np.cumsum(rng.integers(1, 40, n))
    return ZSequence(
        codes=rng.integers(0, 65536, (n, depth)).astype(np.uint16),
        spans=np.stack([np.append(0, ends[:-1]), ends], axis=1),
        windows=(n - n // 3, n // 3) if n >= 3 else (n,),
        source_tokens=4 * n,
        fingerprint="0123456789abcdef",
    )


@pytest.mark.parametrize("n", [1, 2, 50, 1000])
def test_bytes_round_trip(n: int) -> None:
    z = make_sequence(n)
    back = ZSequence.from_bytes(z.to_bytes())
    np.testing.assert_array_equal(back.codes, z.codes)
    np.testing.assert_array_equal(back.spans, z.spans)
    assert (back.windows, back.source_tokens, back.fingerprint) == (
        z.windows,
        z.source_tokens,
        z.fingerprint,
    )
    assert back == z and hash(back) == hash(z)


def test_sequences_differ_by_a_single_code() -> None:
    z, other = make_sequence(), make_sequence()
    other.codes[3, 1] ^= 1
    assert z != other


def test_every_flipped_byte_and_every_cut_is_noticed() -> None:
    data = make_sequence(5).to_bytes()
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x40
        with pytest.raises(SequenceError):
            ZSequence.from_bytes(bytes(damaged))
        with pytest.raises(SequenceError):
            ZSequence.from_bytes(data[:position])


def test_file_round_trip_and_errors(tmp_path: Path) -> None:
    z = make_sequence()
    path = tmp_path / "folder" / "text.zt"
    z.save(path)
    assert ZSequence.load(path) == z
    assert [p.name for p in path.parent.iterdir()] == ["text.zt"]
    with pytest.raises(SequenceError, match=r"missing\.zt"):
        ZSequence.load(tmp_path / "missing.zt")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(SequenceError, match=r"text\.zt.*truncated"):
        ZSequence.load(path)


def test_an_unwritable_path_names_cause_and_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "out.zt", tmp_path, tmp_path / ("n" * 300)):
        with pytest.raises(ZtokError, match=r"cannot write .*name a file"):
            make_sequence().save(path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_windows_must_add_up() -> None:
    z = make_sequence()
    with pytest.raises(SequenceError, match="window"):
        ZSequence(z.codes, z.spans, (1, 2), z.source_tokens, z.fingerprint)
