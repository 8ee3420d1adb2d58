"""The prompt of each arm, and cutting texts to a number of tokens."""

from __future__ import annotations

import re
from typing import Any

import pytest
from conftest import PASSAGE

from ztok_rag import ZCompressor, ZSequence
from ztok_rag.codec.packer import EMPTY
from ztok_rag.evaluation import cut_end, cut_middle, make_arms, make_question
from ztok_rag.evaluation.prompts import Compressed, Prompt, build_prompt

MILL = "The mill on Reed Lane was built in 1902."


class WordTokenizer:
    """Each word with the space before it is a token."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[tuple[int, int]]]:
        return {"offset_mapping": [match.span() for match in re.finditer(r"\s*\S+", text)]}


def test_cut_end_keeps_whole_words(compressor: ZCompressor) -> None:
    tokenizer = compressor.tokenizer
    assert cut_end(MILL, 100, tokenizer) == (MILL, False)
    for limit in range(1, 30):
        kept, cut = cut_end(PASSAGE, limit, tokenizer)
        assert cut and PASSAGE.startswith(kept) and PASSAGE[len(kept)] == " "
        assert compressor.count_tokens(kept) <= limit
    assert cut_end("pneumonoultramicroscopic", 2, tokenizer)[0]


def test_cut_middle() -> None:
    tokenizer = WordTokenizer()
    text = " ".join(map(str, range(10)))
    assert cut_middle(text, 10, tokenizer) == (text, False)
    assert cut_middle(text, 4, tokenizer) == ("0 1 8 9", True)
    assert cut_middle(text, 1, tokenizer) == ("", True)


RECORD = {"question": "Who was the last keeper?", "answers": ["Tomas Berg"]}


def prompts(compressor: ZCompressor, names: str, chunks: list[str]) -> dict[str, Prompt]:
    question = make_question("t", 0, RECORD, 8)
    compressed = Compressed(compressor)
    return {
        arm.name: build_prompt(question, arm, chunks, compressed, compressor)
        for arm in make_arms(names.split(","), [4])
    }


def test_the_text_reader_reads_the_tokens_of_the_text(compressor: ZCompressor) -> None:
    made = prompts(compressor, "text,text-reader,text-reader+copying,none", [PASSAGE, MILL])
    copying = made["text-reader+copying"]
    assert copying.segments == made["text-reader"].segments and copying.likely is not None
    assert made["text-reader"].likely is None
    before, z, after = made["text-reader"].segments
    assert isinstance(z, ZSequence) and (z.codes[:, 1:] == EMPTY).all()
    assert compressor.decompress([z]) == [f"{PASSAGE}\n\n{MILL}"]
    assert made["text-reader"].context_tokens == made["text"].context_tokens == len(z)
    assert before == "" and RECORD["question"] in str(after)
    (plain,) = made["text"].segments
    assert f"{PASSAGE}\n\n{MILL}" in str(plain)
    assert made["none"].context_tokens == 0 and len(made["none"].segments) == 1


def test_both_looks_are_counted(compressor: ZCompressor) -> None:
    chunks = [f"{PASSAGE} {PASSAGE} {number}. {MILL} {PASSAGE}" for number in range(3)]
    made = prompts(compressor, "ztok,ztok-twice", chunks)
    once, twice = made["ztok"], made["ztok-twice"]
    second = [s for s in twice.segments if isinstance(s, ZSequence)]
    first = sum(round(once.source_tokens / 3 / 16) for _ in range(3))
    assert twice.z_tokens == pytest.approx(first + sum(map(len, second)), abs=3)
    assert twice.context_tokens == twice.z_tokens + 4  # two blank lines in each look
    assert twice.z_tokens == pytest.approx(once.z_tokens, rel=0.1)
    assert max(int((z.sizes == 1).sum()) for z in second) > 20
    assert twice.stored_bytes == once.stored_bytes and twice.times["look_ms"] > 0


def test_short_contexts_are_read_once(compressor: ZCompressor) -> None:
    made = prompts(compressor, "ztok,ztok-twice", [PASSAGE[:100]])
    assert made["ztok-twice"].segments == made["ztok"].segments
    assert made["ztok-twice"].context_tokens == made["ztok"].context_tokens


def test_a_text_that_is_too_long_loses_its_middle(
    compressor: ZCompressor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(compressor.model.base), "max_positions", 120)
    for name, prompt in prompts(compressor, "text,text-reader,ztok", [PASSAGE * 3] * 3).items():
        adapter = None if name == "text" else "read"
        positions = compressor.reader.count_tokens(prompt.segments, adapter=adapter)
        assert prompt.truncated and positions + 8 <= 120
