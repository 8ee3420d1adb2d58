"""Speculative decoding: the same answers in fewer passes of the LLM."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.conftest import BAKERY, PASSAGE
from tests.training.tiny_base import LAYOUTS, tiny_base
from ztok_rag import ZCompressor, ZReader
from ztok_rag.codec import generation
from ztok_rag.codec.base import BaseLM, default_dtype
from ztok_rag.codec.chains import Chains
from ztok_rag.codec.copying import CopyFromCodes, CopySource
from ztok_rag.codec.generation import Answer, GreedyDecoder
from ztok_rag.codec.speculation import LONGEST_DRAFT, Draft, Drafter, choose_width
from ztok_rag.codec.write_head import WriteHead

Ids = list[int]

BASE: dict[str, BaseLM] = {}


def base_of(layout: str) -> BaseLM:
    """A tiny base in float64, in which no two tokens score alike by rounding."""
    if layout not in BASE:
        BASE[layout] = tiny_base(layout)
        BASE[layout].model.double()
        BASE[layout].model.generation_config.eos_token_id = [1, 2]
    return BASE[layout]


def drafter(*known: Ids, written: Sequence[int]) -> Drafter:
    made = Drafter(known)
    made.extend(written)
    return made


def test_a_draft_is_what_followed_the_longest_match() -> None:
    draft = drafter([5, 6, 7, 8], [9, 6, 3], written=[5, 6]).draft()
    assert (list(draft.tokens), draft.matched) == ([7, 8], 2)
    assert draft.chances[1] > draft.chances[0]


def test_there_is_no_draft_where_places_disagree_or_there_is_none() -> None:
    assert not drafter([5, 6, 7, 8], [9, 6, 3], written=[6]).draft()
    assert not drafter([5, 6, 7, 8], written=[4]).draft()
    assert not drafter([5, 6, 7, 8], written=[8]).draft()
    assert not drafter([5, 6], written=[]).draft()


def test_an_answer_that_repeats_itself_is_drafted() -> None:
    assert list(drafter(written=[1, 2, 3, 1, 2]).draft().tokens) == [3, 1, 2]


def test_a_draft_is_bounded() -> None:
    assert len(drafter(list(range(90)), written=[3]).draft()) == LONGEST_DRAFT
    assert len(drafter(list(range(90)), written=[3]).draft().cut(4)) == 4


def test_drafts_that_fail_are_given_up() -> None:
    own = drafter(list(range(50)), written=[3])
    widths = []
    for _ in range(6):
        draft = own.draft()
        widths.append(choose_width([draft]))
        own.learn(draft, 0)
    assert widths[0] > 1 and widths[-1] == 1


def test_wider_passes_must_pay_for_the_whole_batch() -> None:
    sure = Draft(range(8), [0.95] * 8, 4)
    assert choose_width([sure]) == 9
    assert choose_width([sure] * 8) > 4
    assert choose_width([sure] + [Draft()] * 15) < 4
    assert choose_width([Draft()] * 3) == 1


@torch.inference_mode()
def reference(base: BaseLM, prompt: Ids, limit: int, processor: CopyFromCodes | None) -> Ids:
    """Greedy decoding that reads all again for each token."""
    written: Ids = []
    while len(written) < limit and not {1, 2} & set(written):
        scores = base.model(torch.tensor([prompt + written])).logits[:, -1].float()
        if not written:
            scores[:, [1, 2]] = -torch.inf
        if processor is not None:
            scores = processor(torch.tensor([written], dtype=torch.long), scores)
        written.append(int(scores.argmax()))
    return written


def chains_of(base: BaseLM) -> Chains:
    """An untrained head that believes itself: most of its guesses are wrong."""
    torch.manual_seed(5)
    head = WriteHead(base.hidden_size, torch.arange(2, 60), width=16)
    head.agreement.fill_(1.0)
    return Chains(base, head, 0.1)


def decoded(
    base: BaseLM, answers: list[Answer], chains: Chains | None = None
) -> tuple[list[Ids], int]:
    decoder = GreedyDecoder(base, answers, None, chains)
    while not decoder.done:
        decoder.advance()
    return [answer.tokens for answer in answers], decoder.passes


@given(
    prompts=st.lists(st.lists(st.integers(2, 60), min_size=1, max_size=24), min_size=1, max_size=4),
    limits=st.lists(st.integers(1, 24), min_size=4, max_size=4),
    copy=st.booleans(),
    eager=st.booleans(),
    kind=st.sampled_from(["lookup", "head", "both"]),
    seed=st.integers(0, 999),
)
@settings(max_examples=60, deadline=None)
def test_speculation_changes_no_answer(
    prompts: list[Ids], limits: Ids, copy: bool, eager: bool, kind: str, seed: int
) -> None:
    base, rng = base_of("llama"), np.random.default_rng(seed)
    sources = [rng.integers(2, 60, 30) for _ in prompts]

    def answers(speculate: bool) -> list[Answer]:
        return [
            Answer(
                base.embed(torch.tensor(prompt)),
                limit,
                CopyFromCodes([CopySource([source])], 1) if copy else None,
                Drafter([source.tolist(), prompt]) if speculate and kind != "head" else None,
                guesses=speculate and kind != "lookup",
            )
            for prompt, source, limit in zip(prompts, sources, limits, strict=False)
        ]

    with pytest.MonkeyPatch.context() as patch:
        if eager:  # drafts that do not pay are read, too, so that many are wrong
            patch.setattr(generation, "choose_width", lambda drafts: 1 + max(map(len, drafts)))
        off, passes = decoded(base, answers(False))
        on, fewer = decoded(base, answers(True), chains_of(base))
    want = [
        reference(base, prompt, limit, CopyFromCodes([CopySource([source])], 1) if copy else None)
        for prompt, source, limit in zip(prompts, sources, limits, strict=False)
    ]
    assert on == off == want
    assert fewer <= passes == max(map(len, off))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_writes_the_same(layout: str) -> None:
    base = base_of(layout)
    prompts = [[7, 8, 9, 10, 7, 8], [5, 6, 7]]

    def answers(speculate: bool) -> list[Answer]:
        return [
            Answer(
                base.embed(torch.tensor(p)),
                20,
                None,
                Drafter([p]) if speculate else None,
                guesses=speculate,
            )
            for p in prompts
        ]

    with_drafts = decoded(base, answers(True), chains_of(base))[0]
    assert with_drafts == decoded(base, answers(False))[0]


class Oracle(Chains):
    """Guesses what it was told."""

    def __init__(self, base: BaseLM, written: Ids) -> None:
        super().__init__(base, chains_of(base).head, 0.1)
        self.written = written
        self.at = 0

    def draft(
        self, states: Tensor, tokens: Sequence[int], rooms: Sequence[int], trust: Sequence[float]
    ) -> list[Draft]:
        self.at = self.written.index(tokens[0], self.at)
        guess = self.written[self.at + 1 : self.at + 4][: rooms[0]]
        return [Draft(guess, [0.95] * len(guess), is_guess=True)]


def test_right_guesses_save_passes() -> None:
    base = base_of("llama")
    prompt = base.embed(torch.tensor([7, 8, 9, 10]))
    (written,), passes = decoded(base, [Answer(prompt, 21)])
    guessed = decoded(base, [Answer(prompt, 21, guesses=True)], Oracle(base, written))
    assert guessed[0] == [written]
    assert passes == 21 and guessed[1] <= 7


in_float32 = pytest.mark.skipif(
    default_dtype("cpu") != torch.float32, reason="bf16 rounds passes of several tokens otherwise"
)
ASK = "\n\nQuestion: {}\nAnswer:"
QUESTIONS = [
    (PASSAGE, "Who was the last keeper?"),
    (PASSAGE, "When was the lighthouse built, and by whom?"),
    (PASSAGE, "What did the lamp burn until 1901?"),
    (PASSAGE, "Quote the sentence about the last keeper."),
    (BAKERY, "What is on Harbour Lane?"),
    (BAKERY, "What does the owner sell on Sundays?"),
    (BAKERY, "Repeat the sentence about the rye bread word for word."),
    (BAKERY, "From where was the oven brought?"),
]


def ids_of(reader: ZReader, prompt: list[object], speculate: object, **arguments: object) -> Ids:
    """The tokens of an answer, its end token among them."""
    read = reader._embed(prompt, 40, **arguments)  # type: ignore[arg-type]
    answer = reader._answer(read, 40, speculate)  # type: ignore[arg-type]
    decoder = reader.decoder([answer], str(arguments["adapter"]))
    while not decoder.done:
        decoder.advance()
    return answer.tokens


@in_float32
def test_real_answers_are_the_same_in_fewer_passes(
    compressor: ZCompressor, reader: ZReader
) -> None:
    passes = {}
    prompts: list[list[object]] = []
    for number, (text, question) in enumerate(QUESTIONS):
        (z,) = compressor.compress([text], (1, 2, 4, 8)[number % 4])
        prompts.append([z, ASK.format(question)])
        if number % 2:
            prompts.append([text + ASK.format(question)])
    assert len(prompts) == 12
    for speculate in (False, "lookup"):
        before = reader.passes
        passes[speculate] = [ids_of(reader, p, speculate, adapter="read") for p in prompts]
        together = reader.generate(prompts, max_new_tokens=40, speculate=speculate)  # type: ignore[arg-type]
        texts = [
            reader.tokenizer.decode(ids, skip_special_tokens=True) for ids in passes[speculate]
        ]
        assert together == texts
        passes[speculate, "n"] = reader.passes - before
    assert passes["lookup"] == passes[False]
    assert passes["lookup", "n"] < passes[False, "n"]


@in_float32
def test_real_answers_are_the_same_with_guesses(compressor: ZCompressor, reader: ZReader) -> None:
    zs = compressor.compress([PASSAGE, BAKERY], 2)
    prompts = [[z, "\n\nQuestion: Summarize the text.\nAnswer:"] for z in zs]
    texts, passes = {}, {}
    for kind in (False, "head", "both"):
        before = reader.passes
        texts[kind] = reader.generate(prompts, max_new_tokens=32, speculate=kind, copy=False)  # type: ignore[arg-type]
        passes[kind] = reader.passes - before
    assert texts["head"] == texts["both"] == texts[False]
    assert sum(reader.guessed.values())
    assert max(passes["both"], passes["head"]) <= passes[False]


@in_float32
def test_repeating_takes_far_fewer_passes(compressor: ZCompressor, reader: ZReader) -> None:
    zs = compressor.compress([PASSAGE, BAKERY], 2)
    texts, passes = [], []
    for speculate in (False, True):
        before = reader.passes
        texts.append(reader.repeat(zs, speculate=speculate))
        passes.append(reader.passes - before)
    assert texts[0] == texts[1]
    assert passes[1] < passes[0] / 3


@in_float32
def test_stop_strings_and_limits_hold(compressor: ZCompressor, reader: ZReader) -> None:
    (z,) = compressor.compress([PASSAGE], 2)
    prompt = [z, "\n\nRepeat the text above word for word:\n"]
    for arguments in ({"max_new_tokens": 9}, {"max_new_tokens": 40, "stop": ("1873", "1901")}):
        off = reader.generate([prompt], copy=False, speculate=False, **arguments)[0]  # type: ignore[arg-type]
        assert reader.generate([prompt], copy=False, **arguments)[0] == off  # type: ignore[arg-type]
        assert "".join(reader.stream(prompt, copy=False, **arguments)) == off  # type: ignore[arg-type]
        assert "1873" not in off or "stop" not in arguments


@in_float32
def test_the_plain_base_speculates_too(reader: ZReader) -> None:
    prompt = "red, green, blue, red, green, blue, red, green,"
    passes, texts = [], []
    for speculate in (False, True):
        before = reader.passes
        texts += reader.generate([prompt], adapter=None, max_new_tokens=24, speculate=speculate)
        passes.append(reader.passes - before)
    assert texts[0] == texts[1]
    assert passes[1] < passes[0]
