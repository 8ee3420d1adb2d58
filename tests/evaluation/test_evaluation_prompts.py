"""Cutting texts to a number of tokens."""

from __future__ import annotations

import re
from typing import Any

from conftest import PASSAGE

from ztok_rag import ZCompressor
from ztok_rag.evaluation import cut_end, cut_middle

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
