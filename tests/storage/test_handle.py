"""Handles: what goes round, and what is refused."""

import re
from unittest.mock import patch

import numpy as np
import pytest

from ztok_rag.codec.sequence import ZSequence
from ztok_rag.codec.token_code import TokenCode
from ztok_rag.errors import HandleError
from ztok_rag.storage.handle import (
    HandleEscaper,
    count_tokens,
    decode_handle,
    encode_handle,
    encode_handles,
    escape_handles,
    has_handles,
    split_prompt,
)

SECRET = bytes(range(32))
OTHER_SECRET = bytes(32)
FINGERPRINT = "0123456789abcdef"
CODE = TokenCode.uniform(1 << 16)


def sequence(n: int = 5, fingerprint: str = FINGERPRINT, seed: int = 0) -> ZSequence:
    rng = np.random.default_rng(seed)
    edges = np.arange(n + 1, dtype=np.int64) * 7
    return ZSequence(
        codes=rng.integers(0, 40_000, (n, 3)).astype(np.int32),
        places=np.arange(3 * n),
        spans=np.stack([edges[:-1], edges[1:]], axis=1),
        source_tokens=3 * n,
        fingerprint=fingerprint,
        digest=b"12345678",
        code=CODE,
    )


def test_prompt_is_cut_at_its_handles() -> None:
    first, second = sequence(5), sequence(80, seed=1)
    a, b = encode_handle(first, SECRET), encode_handle(second, SECRET)
    prompt = f"Context:\n{a}\n\n{b}{a}\nQuestion: who? ⟧"
    segments = split_prompt(prompt, SECRET, FINGERPRINT, CODE)
    assert segments == ["Context:\n", first, "\n\n", second, first, "\nQuestion: who? ⟧"]


def test_prompt_without_handles_stays_whole() -> None:
    assert split_prompt("a ⟦b⟧ [ztok:1:x]", SECRET, FINGERPRINT, CODE) == ["a ⟦b⟧ [ztok:1:x]"]
    assert split_prompt("", SECRET, FINGERPRINT, CODE) == []


def test_handle_offers_splitters_no_place_to_cut() -> None:
    handle = encode_handle(sequence(200), SECRET)
    assert not re.search(r"[\s.,;!?。{}]", handle)


def test_any_edited_character_is_refused() -> None:
    handle = encode_handle(sequence(), SECRET)
    for position in range(len("⟦ztok:"), len(handle)):
        for replacement in {"A", "B", "7"} - {handle[position]}:
            forged = handle[:position] + replacement + handle[position + 1 :]
            with pytest.raises(HandleError, match="retrieve the text again"):
                split_prompt(forged, SECRET, FINGERPRINT, CODE)


def test_unused_bits_of_the_last_character_cannot_be_edited() -> None:
    # base64 decoders ignore those bits, so the bytes would be the same.
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for n in range(1, 12):
        handle = encode_handle(sequence(n), SECRET)
        for letter in set(letters) - {handle[-2]}:
            with pytest.raises(HandleError):
                split_prompt(handle[:-2] + letter + "⟧", SECRET, FINGERPRINT, CODE)


@pytest.mark.parametrize(
    "text",
    ["⟦ztok:", "⟦ztok:5:", "⟦ztok:5:AAAA⟧", "⟦ztok:0:AAAA⟧", "⟦ztok:five:AAAA⟧", "⟦ztok:5:A A⟧"],
)
def test_handle_like_text_is_refused(text: str) -> None:
    with pytest.raises(HandleError):
        split_prompt(f"What does {text} mean?", SECRET, FINGERPRINT, CODE)


def test_truncated_handle_is_refused_beside_a_whole_one() -> None:
    handle = encode_handle(sequence(), SECRET)
    with pytest.raises(HandleError, match="incomplete or altered"):
        split_prompt(f"{handle[:-9]}\n{handle}", SECRET, FINGERPRINT, CODE)


def test_handle_of_another_installation_is_refused_by_name() -> None:
    handle = encode_handle(sequence(), OTHER_SECRET)
    with pytest.raises(HandleError, match=r"not made with this store's secret.*same store"):
        split_prompt(handle, SECRET, FINGERPRINT, CODE)


def test_handle_of_another_checkpoint_is_refused_by_name() -> None:
    handle = encode_handle(sequence(fingerprint="f" * 16), SECRET)
    with pytest.raises(HandleError, match=f"{'f' * 16}.*{FINGERPRINT}"):
        split_prompt(handle, SECRET, FINGERPRINT, CODE)


def test_escaped_text_never_opens_a_handle() -> None:
    handle = encode_handle(sequence(), SECRET)
    text = f"before {handle} and ⟦⟦ztok:ztok: after, but ⟦x⟧ stays"
    escaped = escape_handles(text)
    assert not has_handles(escaped)
    assert "⟦x⟧ stays" in escaped
    assert split_prompt(escaped, SECRET, FINGERPRINT, CODE) == [escaped]
    assert escape_handles("plain ⟦text⟧") == "plain ⟦text⟧"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_stream_is_escaped_across_its_pieces(size: int) -> None:
    text = "say ⟦ztok:5:AAAA⟧ and ⟦zt or ⟦⟦ztok: ⟦"
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    escaper = HandleEscaper()
    escaped = [*map(escaper.take, pieces), escaper.rest()]
    assert "".join(escaped) == escape_handles(text)


def test_handle_counts_as_its_z_tokens() -> None:
    handle = encode_handle(sequence(80), SECRET)

    def words(text: str) -> list[int]:
        return [0] * len(text.split())

    assert count_tokens(handle, words) == 80
    assert count_tokens(f"one two {handle} three {handle}", words) == 163
    assert count_tokens(f"{handle[:-5]} {handle}", words) == 81


def test_a_long_sequence_is_several_handles_of_its_parts() -> None:
    z = sequence(1200)
    handles = encode_handles(z, SECRET).split(" ")
    parts = [decode_handle(handle, SECRET, CODE) for handle in handles]
    assert [len(part) for part in parts] == [512, 512, 176]
    assert np.concatenate([part.ids for part in parts]).tolist() == z.ids.tolist()
    assert np.concatenate([part.spans for part in parts]).tolist() == z.spans.tolist()
    assert sum(part.source_tokens for part in parts) == z.source_tokens
    assert encode_handles(z, SECRET, longest=2000) == encode_handle(z, SECRET)


def test_handle_of_an_earlier_version_is_refused_with_what_to_do() -> None:
    with patch.object(ZSequence, "to_bytes", lambda self: b"ZT2\nof another format"):
        handle = encode_handle(sequence(), SECRET)
    with pytest.raises(HandleError, match=r"another version.*retrieve the text again"):
        split_prompt(handle, SECRET, FINGERPRINT, CODE)
