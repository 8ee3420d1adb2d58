"""Reading text and Z-tokens with the default checkpoint."""

from __future__ import annotations

import pytest
import torch
from transformers import NoRepeatNGramLogitsProcessor

from tests.conftest import BAKERY, PASSAGE
from ztok_rag import ZCompressor, ZReader, ZtokError
from ztok_rag.codec.copying import CopyFromCodes

ASKED = "\n\nQuestion: Who was the last keeper?\nAnswer:"


@pytest.mark.parametrize("rate", [1, 2, 4, 8])
def test_it_answers_from_z_tokens(compressor: ZCompressor, reader: ZReader, rate: float) -> None:
    (z,) = compressor.compress([PASSAGE], rate)
    (answer,) = reader.generate([[z, ASKED]], max_new_tokens=12)
    assert ("Tomas Berg" if rate < 8 else "Tomas") in answer


def test_streaming_gives_what_generate_gives(compressor: ZCompressor, reader: ZReader) -> None:
    (z,) = compressor.compress([PASSAGE], 4)
    whole = reader.generate([[z, ASKED]], max_new_tokens=12)[0]
    assert "".join(reader.stream([z, ASKED], max_new_tokens=12)) == whole


def test_batches_answer_as_alone(compressor: ZCompressor, reader: ZReader) -> None:
    a, b = compressor.compress([PASSAGE, BAKERY], 2)
    prompts = [[a, ASKED], [b, "\n\nQuestion: What is on Harbour Lane?\nAnswer:"]]
    together = reader.generate(prompts, max_new_tokens=8)
    assert together == [reader.generate([p], max_new_tokens=8)[0] for p in prompts]


def test_the_reader_repeats_what_it_reads(compressor: ZCompressor, reader: ZReader) -> None:
    (z,) = compressor.compress([PASSAGE], 2)
    (text,) = reader.repeat([z])
    words, said = PASSAGE.split(), text.split()
    assert sum(w in said for w in words) > 0.9 * len(words)


def test_the_pointer_names_the_place_of_the_answer(
    compressor: ZCompressor, reader: ZReader
) -> None:
    a, b = compressor.compress([BAKERY, PASSAGE], 4)
    shares = reader.point([a, "\n\n", b, ASKED])
    assert [len(s) for s in shares] == [len(a), len(b)]
    assert sum(float(s.sum()) for s in shares) == pytest.approx(1, abs=1e-3)
    start, end = b.spans[int(shares[1].argmax())]
    assert shares[1].sum() > 0.8
    assert start - 10 <= PASSAGE.index("Tomas") <= end + 10


def test_the_question_is_read_first_too(compressor: ZCompressor, reader: ZReader) -> None:
    (z,) = compressor.compress([PASSAGE], 4)
    once = reader.count_tokens([z, ASKED], ask_first=False)
    twice = reader.count_tokens([z, ASKED])
    assert twice == once + reader.count_tokens(ASKED) + reader.count_tokens("\n\n") - 2
    assert reader.count_tokens(PASSAGE + ASKED) == reader.count_tokens(
        PASSAGE + ASKED, ask_first=False
    )


@pytest.mark.parametrize("end", [" ", "  \t", ["", " "]])
def test_spaces_at_the_end_of_a_prompt_are_not_read(
    compressor: ZCompressor, reader: ZReader, end: str | list[str]
) -> None:
    (z,) = compressor.compress([PASSAGE], 4)
    with_end = [z, ASKED + end] if isinstance(end, str) else [z, ASKED, *end]
    assert torch.equal(reader.to_embeds(with_end), reader.to_embeds([z, ASKED]))
    assert reader.count_tokens(with_end) == reader.count_tokens([z, ASKED])
    assert reader.generate([PASSAGE + ASKED + " "]) == reader.generate([PASSAGE + ASKED])
    assert reader.count_tokens([z, ASKED + "\n"]) > reader.count_tokens([z, ASKED])
    assert reader.count_tokens(ASKED + " ", adapter=None) > reader.count_tokens(ASKED, adapter=None)
    with pytest.raises(ZtokError, match="the prompt is empty"):
        reader.generate(["  "])


def test_a_long_answer_does_not_go_in_circles(compressor: ZCompressor, reader: ZReader) -> None:
    (z,) = compressor.compress([PASSAGE], 8)
    prompts = [[z, "\n\nSummarize the text.\n\nSummary:"]]
    for speculate in (False, True):
        circling, straight = (
            reader.generate(
                prompts, max_new_tokens=60, min_new_tokens=60, no_repeat_ngram_size=size,
                speculate=speculate,
            )[0]
            for size in (0, 5)
        )  # fmt: skip
        (default,) = reader.generate(prompts, max_new_tokens=60, min_new_tokens=60)
        assert default != circling and longest_repeat(compressor, default) < 9
        assert longest_repeat(compressor, circling) > 5
        assert longest_repeat(compressor, straight) < 6  # tokens of a text may be cut otherwise
        assert len(compressor.tokenizer(straight)["input_ids"]) > 50


def longest_repeat(compressor: ZCompressor, text: str) -> int:
    """Tokens of the longest run that a text has twice."""
    ids = compressor.tokenizer(text, add_special_tokens=False)["input_ids"]
    sizes = range(1, len(ids))
    runs = {size: [tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)] for size in sizes}
    return max((size for size in sizes if len(set(runs[size])) < len(runs[size])), default=0)


def test_an_answer_is_not_shorter_than_asked(compressor: ZCompressor, reader: ZReader) -> None:
    (z,) = compressor.compress([PASSAGE], 2)
    short, long = (
        reader.generate([[z, ASKED]], max_new_tokens=24, min_new_tokens=least)[0]
        for least in (1, 24)
    )
    assert long.startswith(short) and len(long) > len(short) + 20
    with pytest.raises(ZtokError, match="at most max_new_tokens"):
        reader.generate([[z, ASKED]], max_new_tokens=8, min_new_tokens=9)


def test_what_is_read_as_text_is_not_copied(compressor: ZCompressor, reader: ZReader) -> None:
    one, several = (compressor.compress([PASSAGE], rate)[0] for rate in (1, 4))
    assert reader.begin(PASSAGE + ASKED).processor is None
    assert reader.begin([one, ASKED]).processor is None
    assert reader.begin([several, ASKED], adapter=None, no_repeat_ngram_size=0).processor is None
    kinds = [type(step) for step in reader.begin([several, ASKED]).processor or ()]
    assert kinds == [CopyFromCodes, NoRepeatNGramLogitsProcessor]


def test_unknown_adapters_and_foreign_sequences(compressor: ZCompressor, reader: ZReader) -> None:
    import dataclasses

    (z,) = compressor.compress([PASSAGE], 4)
    with pytest.raises(ZtokError, match="adapter"):
        reader.generate([[z, ASKED]], adapter="text")
    foreign = dataclasses.replace(z, fingerprint="f" * 16)
    with pytest.raises(ZtokError, match="compress the text again"):
        reader.generate([[foreign, ASKED]])
    with pytest.raises(ZtokError, match="empty"):
        reader.generate([""])
    with pytest.raises(ZtokError, match="list"):
        reader.generate("a prompt")


def test_the_plain_base_reads_text_as_it_is(reader: ZReader) -> None:
    prompt = "The capital of France is"
    base = reader.model.base
    ids = base.tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode(), base.adapter(None):
        made = base.model.generate(**ids, max_new_tokens=6, do_sample=False)
    want = base.tokenizer.decode(made[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert reader.generate([prompt], adapter=None, max_new_tokens=6)[0] == want
