"""`ZGenerator`: Z-tokens that the LLM writes, on a tiny base and on the default model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tests.conftest import PASSAGE
from tests.training.tiny_base import passages, tiny_model
from ztok_rag import ZCompressor, ZGenerator, ZReader, ZSequence
from ztok_rag.codec.model import ZModel
from ztok_rag.codec.read_back import READ_AS
from ztok_rag.codec.write_head import WriteHead
from ztok_rag.errors import SequenceError, ZtokError

TEXT = passages(1)[0][0]


@pytest.fixture(scope="module")
def tiny() -> ZModel:
    """A tiny model with an untrained head that believes itself."""
    model = tiny_model()
    model.base.model.double()  # so that no two tokens score alike by rounding
    head = WriteHead(32, torch.arange(0, 2000, 2), width=16)
    head.agreement.fill_(0.9)
    model.set_writer(head)
    return model


def test_z_tokens_hold_several_tokens_and_their_text_comes_out_exactly(tiny: ZModel) -> None:
    generator = ZGenerator(tiny)
    z = generator.generate(TEXT, max_new_tokens=40, longest=5)
    assert z.source_tokens == 40 and z.sizes.max() == 5
    assert generator.passes == len(z) < 40
    assert ZCompressor(tiny).decompress([z]) == [generator.text(z)]
    assert z.digest and z.spans[0, 0] == 0 and z.spans[-1, 1] == len(generator.text(z))
    assert (z.spans[1:, 0] == z.spans[:-1, 1]).all()
    assert ZSequence.from_bytes(z.to_bytes(), tiny.token_code) == z


def test_where_the_head_is_never_sure_it_is_greedy_decoding(tiny: ZModel) -> None:
    generator, reader = ZGenerator(tiny), ZReader(tiny)
    z = generator.generate(TEXT, max_new_tokens=12, confidence=1.0)
    assert z.sizes.tolist() == [1] * len(z)
    (want,) = reader.generate([TEXT], max_new_tokens=12, adapter=None, speculate=False)
    assert reader.tokenizer.decode(z.ids, skip_special_tokens=True) == want


@pytest.mark.parametrize("read_as", READ_AS)
def test_a_stream_joins_to_what_is_generated(tiny: ZModel, read_as: str) -> None:
    generator = ZGenerator(tiny)
    (context,) = ZCompressor(tiny).compress([TEXT], 4)
    prompt = ["Of a mill: ", context, "\nIn short:"]
    arguments = {"max_new_tokens": 30, "longest": 4, "temperature": 0.7, "read_as": read_as}
    whole = generator.generate(prompt, seed=3, **arguments)  # type: ignore[arg-type]
    pieces = list(generator.stream(prompt, seed=3, **arguments))  # type: ignore[arg-type]
    assert all(len(piece) == 1 for piece in pieces) and len(pieces) == len(whole)
    joined = ZSequence.concat(pieces)
    assert np.array_equal(joined.codes, whole.codes)
    # Half a character at the very end is counted with the whole text only.
    assert np.array_equal(joined.spans[:-1], whole.spans[:-1])
    other = generator.generate(prompt, seed=4, **arguments)  # type: ignore[arg-type]
    assert not np.array_equal(other.ids, whole.ids)


@torch.inference_mode()
def read_again(model: ZModel, pieces: list[list[int]], read_as: str) -> torch.Tensor:
    """Scores after Z-tokens that are read in one pass, without a cache."""
    base = model.base
    rows = [base.embed(torch.tensor([model.start_token]))]
    for number, codes in enumerate(pieces):
        last = number == len(pieces) - 1
        if read_as == "text" or (read_as == "both" and last):
            rows.append(base.embed(torch.tensor(codes)))
        else:
            padded = torch.full((1, model.config.slots), -1)
            padded[0, : len(codes)] = torch.tensor(codes)
            rows.append(model.embed_codes(padded))
    logits = base.model(inputs_embeds=torch.cat(rows).unsqueeze(0)).logits[0, -1]
    return torch.as_tensor(logits.float().log_softmax(-1))


@pytest.mark.parametrize("read_as", READ_AS)
def test_each_way_of_reading_back_reads_what_it_says(tiny: ZModel, read_as: str) -> None:
    score = ZGenerator(tiny).score(TEXT, read_as=read_as, longest=3)  # type: ignore[arg-type]
    ids = tiny.base.tokenizer(TEXT)["input_ids"]
    assert len(score.nats) == len(ids) == score.sizes.sum()
    edges = np.cumsum([0, *score.sizes])
    pieces = [ids[a:b] for a, b in itertools.pairwise(edges)]
    known = set(range(0, 2000, 2))
    checked = 0
    for number in (1, 2, 5, 9):
        scores = read_again(tiny, pieces[:number], read_as)
        want = -float(scores[pieces[number][0]])
        escaped = score.sizes[number - 1] < 3 and pieces[number][0] not in known
        if not escaped:
            assert score.nats[edges[number]] == pytest.approx(want, abs=1e-4)
            checked += 1
        else:  # that the head cannot write the token costs something, too
            assert score.nats[edges[number]] > want
    assert checked


def test_scores_without_the_head_are_those_of_the_base(tiny: ZModel) -> None:
    score = ZGenerator(tiny).score(TEXT, confidence=1.0)
    assert (score.slots == 0).all()
    ids = torch.tensor(tiny.base.tokenizer(TEXT)["input_ids"])
    inputs = torch.cat([torch.tensor([tiny.start_token]), ids[:-1]])
    with torch.inference_mode():
        logits = tiny.base.model(inputs.unsqueeze(0)).logits[0].float().log_softmax(-1)
    want = -logits.gather(1, ids.unsqueeze(1)).squeeze(1)
    assert score.nats == pytest.approx(want.numpy(), abs=1e-4)


def test_what_is_written_can_be_read(tiny: ZModel) -> None:
    z = ZGenerator(tiny).generate(TEXT, max_new_tokens=10)
    assert ZReader(tiny).generate([[z, "\nMore:"]], max_new_tokens=2)


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ({"confidence": 1.5}, "confidence"),
        ({"longest": 99}, "1 to 8"),
        ({"read_as": "codes"}, "text, both, z"),
        ({"temperature": -1.0}, "temperature"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 600}, "positions"),
        ({"adapter": "write"}, "no adapter"),
    ],
)
def test_arguments_out_of_range_are_errors(
    tiny: ZModel, arguments: dict[str, object], cause: str
) -> None:
    for write in (ZGenerator(tiny).generate, ZGenerator(tiny).stream):
        with pytest.raises(ZtokError, match=cause):
            write(TEXT, **arguments)  # type: ignore[arg-type]


def test_prompts_are_checked(tiny: ZModel, compressor: ZCompressor) -> None:
    generator = ZGenerator(tiny)
    with pytest.raises(ZtokError, match="empty"):
        generator.generate("")
    (z,) = compressor.compress([PASSAGE], 4)
    with pytest.raises(SequenceError, match="made by checkpoint"):
        generator.generate([z])


def test_the_shipped_head_writes_in_fewer_passes(compressor: ZCompressor) -> None:
    generator = ZGenerator(compressor.model)
    z = generator.generate(PASSAGE, max_new_tokens=24, confidence=0.2)
    assert len(z) < z.source_tokens
    assert compressor.decompress([z]) == [generator.text(z)]
