"""An answer goes on over the end of a line as over a space."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ztok_rag import ZCompressor, ZReader
from ztok_rag.codec.base import decode_exactly
from ztok_rag.codec.copying import CopyFromCodes, CopySource
from ztok_rag.codec.line_breaks import join_lines, runs_with_joined_lines

TEXT = """Hamlin swept the floor,
drew water from the well, and fetched
  peat from the moor.

The raven — it was 106 — sat
down on the sill."""
JOINED = """Hamlin swept the floor, drew water from the well, and fetched peat from the moor.

The raven — it was 106 — sat down on the sill."""


@pytest.mark.parametrize("rate", [1, 4, 8])
def test_lines_are_joined_and_tokens_keep_their_owners(
    compressor: ZCompressor, rate: float
) -> None:
    tokenizer = compressor.tokenizer
    (z,) = compressor.compress([TEXT], rate)
    (joined,) = join_lines(z, tokenizer)
    assert decode_exactly(tokenizer, joined.ids) == JOINED
    assert (np.diff(joined.owners) >= 0).all()
    pairs = [
        (
            decode_exactly(tokenizer, joined.ids[i : i + 1]),
            decode_exactly(tokenizer, z.ids[j : j + 1]),
        )
        for i, j in enumerate(joined.owners.tolist())
    ]
    assert all(new.strip() == own.strip() for new, own in pairs if new.isascii())


def test_runs_are_joined_one_by_one(compressor: ZCompressor) -> None:
    tokenizer = compressor.tokenizer
    (z,) = compressor.compress([TEXT], 1)
    cut = int(np.flatnonzero(z.ids == tokenizer("\n")["input_ids"][0])[0])
    around = [*range(cut - 3, cut + 3), *range(len(z.ids) - 2, len(z.ids))]
    part = z.view(np.array(around), 1)
    assert len(part.runs) == 2
    (joined,) = join_lines(part, tokenizer)
    assert decode_exactly(tokenizer, joined.ids) == " the floor, drew water"
    assert joined.owners.tolist() == [0, 1, 2, 4, 5]
    runs = runs_with_joined_lines(part, [joined])
    assert [decode_exactly(tokenizer, run) for run in runs] == [" the floor, drew water", "ill."]
    assert join_lines(compressor.compress([JOINED], 1)[0], tokenizer) == []


def test_a_run_that_begins_amid_a_word_is_joined(compressor: ZCompressor) -> None:
    tokenizer = compressor.tokenizer
    (z,) = compressor.compress(["Oyvhildtarkwarzny went\nhome to Ulmskoog\nby the sea."], 1)
    for first in range(1, 8):
        part = z.view(np.arange(first, len(z.places)), 1)
        (joined,) = join_lines(part, tokenizer)
        assert decode_exactly(tokenizer, joined.ids).endswith("home to Ulmskoog by the sea.")
        assert joined.owners[-1] == len(part.places) - 1


def test_a_space_or_the_line_break_goes_on_for_nothing(compressor: ZCompressor) -> None:
    tokenizer = compressor.tokenizer
    (z,) = compressor.compress([TEXT], 4)
    source = CopySource([z.ids], [np.full(len(z.ids), 0.01)], [join_lines(z, tokenizer)])
    written = tokenizer(" the floor,", add_special_tokens=False)["input_ids"]
    scores = torch.zeros(1, len(tokenizer))
    after = CopyFromCodes([source], 2)(torch.tensor([written]), scores)[0]
    free = {tokenizer.decode([i]) for i in (after == 0).nonzero()[:, 0].tolist()}
    assert {" drew", "\n"} <= free and len(free) <= 3
    source.point([np.linspace(0, 1, len(z.ids))])
    assert len(source.begins or ()) == len(source.ids)


def test_an_answer_has_no_line_break_where_its_text_was_wrapped(
    compressor: ZCompressor, reader: ZReader
) -> None:
    text = (
        "On Monday the miller counted sacks. The raven stole the ring of the\n"
        "Countess Adelina\nof Brannock, and nobody saw it. On Tuesday it rained in the valley."
    )
    (z,) = compressor.compress([text], 4)
    prompt = [z, "\n\nQuestion: Whose ring did the raven steal?\nAnswer:"]
    (answer,) = reader.generate([prompt])
    assert "\n" not in answer.strip() and "Adelina" in answer
